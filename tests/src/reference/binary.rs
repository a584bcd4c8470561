//! Element-wise functions of two arguments and their derivatives, with broadcasting.

use patchgpt_tensor::Binary;

use crate::array::{Array, met_by};

/// Value and both derivatives of a function of two arguments. A maximum or minimum with NaN is NaN.
pub fn value_and_derivatives(op: Binary, a: f64, b: f64) -> (f64, f64, f64) {
    match op {
        Binary::Add => (a + b, 1.0, 1.0),
        Binary::Sub => (a - b, 1.0, -1.0),
        Binary::Mul => (a * b, b, a),
        Binary::Div => (a / b, 1.0 / b, -a / (b * b)),
        Binary::Max | Binary::Min if a.is_nan() || b.is_nan() => (f64::NAN, f64::NAN, f64::NAN),
        Binary::Max => {
            if a > b {
                (a, 1.0, 0.0)
            } else {
                (b, 0.0, 1.0)
            }
        }
        Binary::Min => {
            if a < b {
                (a, 1.0, 0.0)
            } else {
                (b, 0.0, 1.0)
            }
        }
    }
}

fn common(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let size = |s: &[usize], d: usize| if d + s.len() < rank { 1 } else { s[d + s.len() - rank] };
    (0..rank).map(|d| if size(a, d) == 1 { size(b, d) } else { size(a, d) }).collect()
}

/// `op` of the elements of two arrays that broadcast.
pub fn forward(op: Binary, a: &Array, b: &Array) -> Array {
    let shape = common(&a.shape, &b.shape);
    Array::from_fn(&shape, |i| {
        value_and_derivatives(op, a.data[met_by(&a.shape, &shape, i)], b.data[met_by(&b.shape, &shape, i)]).0
    })
}

/// Gradients of [`forward`], summed over what was broadcast.
pub fn backward(op: Binary, a: &Array, b: &Array, d_out: &Array) -> Vec<Array> {
    let (mut d_a, mut d_b) = (Array::zeros(&a.shape), Array::zeros(&b.shape));
    for (i, d) in d_out.data.iter().enumerate() {
        let (ia, ib) = (met_by(&a.shape, &d_out.shape, i), met_by(&b.shape, &d_out.shape, i));
        let (_, da, db) = value_and_derivatives(op, a.data[ia], b.data[ib]);
        d_a.data[ia] += d * da;
        d_b.data[ib] += d * db;
    }
    vec![d_a, d_b]
}
