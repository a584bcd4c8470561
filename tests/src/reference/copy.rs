//! Copies and casts, element by element: floats round to nearest even, float to integer truncates toward zero and saturates (NaN becomes
//! 0), i64 to i32 saturates.

use patchgpt_tensor::DType;

use crate::array::{Array, round_to};

/// One element of type `to`; integers that an f64 holds exactly are held exactly.
pub fn cast(x: f64, to: DType) -> f64 {
    let integer = |low: f64, high: f64| if x.is_nan() { 0.0 } else { x.trunc().clamp(low, high) };
    match to {
        DType::I32 => integer(-2f64.powi(31), 2f64.powi(31) - 1.0),
        // The largest f64 below 2^63 is far from i64::MAX: cases stay where both are exact.
        DType::I64 => integer(-2f64.powi(63), 2f64.powi(63)),
        _ => round_to(x, to),
    }
}

/// Every element of type `to`.
pub fn forward(x: &Array, to: DType) -> Array {
    Array::from_fn(&x.shape, |i| cast(x.data[i], to))
}
