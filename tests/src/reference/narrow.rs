//! The slice `start..start + length` along a dimension; `d_x` is zero outside of it.

use crate::array::Array;

/// Number in x, along `dim` of size `size`, of element `i` of the slice.
fn origin(x: &[usize], dim: usize, start: usize, length: usize, i: usize) -> usize {
    let inner: usize = x[dim + 1..].iter().product();
    let (before, along, behind) = (i / (length * inner), i / inner % length, i % inner);
    (before * x[dim] + start + along) * inner + behind
}

/// The slice.
pub fn forward(x: &Array, dim: usize, start: usize, length: usize) -> Array {
    let mut shape = x.shape.clone();
    shape[dim] = length;
    Array::from_fn(&shape, |i| x.data[origin(&x.shape, dim, start, length, i)])
}

/// Gradient for x.
pub fn backward(x: &Array, dim: usize, start: usize, d_out: &Array) -> Vec<Array> {
    let mut d_x = Array::zeros(&x.shape);
    for (i, d) in d_out.data.iter().enumerate() {
        d_x.data[origin(&x.shape, dim, start, d_out.shape[dim], i)] = *d;
    }
    vec![d_x]
}
