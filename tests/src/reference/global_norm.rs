//! `norm = sqrt(sum x^2)`, `clip = min(1, max_norm / (norm + 1e-6))`.

use crate::array::Array;

/// The norm and the factor that brings it down to `max_norm`.
pub fn forward(x: &Array, max_norm: f64) -> [f64; 2] {
    let mut squares = 0.0;
    for v in &x.data {
        squares += v * v;
    }
    let norm = squares.sqrt();
    [norm, (max_norm / (norm + 1e-6)).min(1.0)]
}
