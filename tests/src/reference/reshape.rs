//! The elements in row-major order under another shape, and the gradient under the old one.

use crate::array::Array;

/// x as `shape`.
pub fn forward(x: &Array, shape: &[usize]) -> Array {
    Array::from_fn(shape, |i| x.data[i])
}

/// Gradient for x.
pub fn backward(x: &Array, d_out: &Array) -> Vec<Array> {
    vec![forward(d_out, &x.shape)]
}
