//! `out = g / (1 + e^-g) * u` with g the first and u the second half of the last dimension.

use crate::array::Array;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// SwiGLU of every row.
pub fn forward(x: &Array) -> Array {
    let f = x.width() / 2;
    let mut shape = x.shape.clone();
    *shape.last_mut().expect("rank of at least 1") = f;
    let mut out = Array::zeros(&shape);
    for r in 0..x.rows() {
        for i in 0..f {
            let (g, u) = (x.row(r)[i], x.row(r)[f + i]);
            out.row_mut(r)[i] = g * sigmoid(g) * u;
        }
    }
    out
}

/// Gradient for x.
pub fn backward(x: &Array, d_out: &Array) -> Vec<Array> {
    let f = x.width() / 2;
    let mut d_x = Array::zeros(&x.shape);
    for r in 0..x.rows() {
        for i in 0..f {
            let (g, u, d) = (x.row(r)[i], x.row(r)[f + i], d_out.row(r)[i]);
            let s = sigmoid(g);
            d_x.row_mut(r)[i] = d * u * (s + g * s * (1.0 - s));
            d_x.row_mut(r)[f + i] = d * g * s;
        }
    }
    vec![d_x]
}
