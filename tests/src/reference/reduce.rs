//! Sums and maxima over dimensions, which keep size 1.

use crate::array::{Array, met_by};

fn kept(shape: &[usize], dims: &[usize]) -> Vec<usize> {
    shape.iter().enumerate().map(|(d, &n)| if dims.contains(&d) { 1 } else { n }).collect()
}

/// Sum over `dims`.
pub fn sum(x: &Array, dims: &[usize]) -> Array {
    let mut out = Array::zeros(&kept(&x.shape, dims));
    for (i, v) in x.data.iter().enumerate() {
        out.data[met_by(&out.shape, &x.shape, i)] += v;
    }
    out
}

/// Gradient of [`sum`].
pub fn sum_backward(x: &Array, dims: &[usize], d_out: &Array) -> Vec<Array> {
    let shape = kept(&x.shape, dims);
    vec![Array::from_fn(&x.shape, |i| d_out.data[met_by(&shape, &x.shape, i)])]
}

/// Maximum over `dims`; NaN if any is NaN, -inf over nothing.
pub fn max(x: &Array, dims: &[usize]) -> Array {
    let mut out = Array::from_fn(&kept(&x.shape, dims), |_| f64::NEG_INFINITY);
    for (i, &v) in x.data.iter().enumerate() {
        let o = &mut out.data[met_by(&kept(&x.shape, dims), &x.shape, i)];
        *o = if o.is_nan() || v.is_nan() { f64::NAN } else { o.max(v) };
    }
    out
}
