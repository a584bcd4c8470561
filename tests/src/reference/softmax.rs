//! `y_i = e^(x_i - max) / sum_j e^(x_j - max)` over the last dimension; `d_x_i = y_i (d_y_i - sum_j d_y_j y_j)`.

use crate::array::Array;

/// Softmax of every row.
pub fn forward(x: &Array) -> Array {
    let mut out = x.clone();
    for r in 0..x.rows() {
        let max = x.row(r).iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v));
        let sum: f64 = x.row(r).iter().map(|v| (v - max).exp()).sum();
        for (o, v) in out.row_mut(r).iter_mut().zip(x.row(r)) {
            *o = (v - max).exp() / sum;
        }
    }
    out
}

/// Gradient for x.
pub fn backward(x: &Array, d_y: &Array) -> Vec<Array> {
    let y = forward(x);
    let mut d_x = Array::zeros(&x.shape);
    for r in 0..x.rows() {
        let dot: f64 = y.row(r).iter().zip(d_y.row(r)).map(|(y, d)| y * d).sum();
        for i in 0..x.width() {
            d_x.row_mut(r)[i] = y.row(r)[i] * (d_y.row(r)[i] - dot);
        }
    }
    vec![d_x]
}
