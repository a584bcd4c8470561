//! Element-wise functions of one argument and their derivatives.

use patchgpt_tensor::Unary;

use crate::array::Array;

/// Value and derivative of a function of one argument.
pub fn value_and_derivative(op: Unary, x: f64) -> (f64, f64) {
    match op {
        Unary::Neg => (-x, -1.0),
        Unary::Exp => (x.exp(), x.exp()),
        Unary::Log => (x.ln(), 1.0 / x),
        Unary::Sqrt => (x.sqrt(), 0.5 / x.sqrt()),
        Unary::Tanh => (x.tanh(), 1.0 / x.cosh().powi(2)),
        Unary::Sigmoid => (1.0 / (1.0 + (-x).exp()), (-x).exp() / (1.0 + (-x).exp()).powi(2)),
        Unary::Square => (x * x, 2.0 * x),
        Unary::Recip => (1.0 / x, -1.0 / (x * x)),
        Unary::Affine { mul, add } => (x * mul + add, mul),
    }
}

/// `op` of every element.
pub fn forward(op: Unary, x: &Array) -> Array {
    Array::from_fn(&x.shape, |i| value_and_derivative(op, x.data[i]).0)
}

/// Gradient of [`forward`].
pub fn backward(op: Unary, x: &Array, d_out: &Array) -> Vec<Array> {
    vec![Array::from_fn(&x.shape, |i| d_out.data[i] * value_and_derivative(op, x.data[i]).1)]
}
