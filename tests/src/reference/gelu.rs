//! `x/2 (1 + tanh u)`, `u = sqrt(2/pi) (x + 0.044715 x^3)`; derivative `(1 + tanh u)/2 + x/2 (1 - tanh^2 u) u'`.

use crate::array::Array;

const A: f64 = 0.044715;

fn root() -> f64 {
    (2.0 / std::f64::consts::PI).sqrt()
}

/// GELU of every element.
pub fn forward(x: &Array) -> Array {
    Array::from_fn(&x.shape, |i| {
        let v = x.data[i];
        0.5 * v * (1.0 + (root() * (v + A * v.powi(3))).tanh())
    })
}

/// Gradient for x.
pub fn backward(x: &Array, d_out: &Array) -> Vec<Array> {
    vec![Array::from_fn(&x.shape, |i| {
        let v = x.data[i];
        let t = (root() * (v + A * v.powi(3))).tanh();
        let du = root() * (1.0 + 3.0 * A * v * v);
        d_out.data[i] * (0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * du)
    })]
}
