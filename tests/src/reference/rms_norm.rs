//! `y_i = x_i w_i / r`, `r = sqrt(mean(x^2) + eps)`; `d_x_i = d_i w_i / r - x_i / (C r^3) sum_j d_j w_j x_j`, `d_w_i = sum over rows of d_i x_i / r`.

use crate::array::Array;

fn root(row: &[f64], eps: f64) -> f64 {
    (row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64 + eps).sqrt()
}

/// The normalised rows.
pub fn forward(x: &Array, weight: &Array, eps: f64) -> Array {
    let mut out = x.clone();
    for r in 0..x.rows() {
        let root = root(x.row(r), eps);
        for (o, w) in out.row_mut(r).iter_mut().zip(&weight.data) {
            *o *= w / root;
        }
    }
    out
}

/// Gradients for x and the weight.
pub fn backward(x: &Array, weight: &Array, eps: f64, d_out: &Array) -> Vec<Array> {
    let c = x.width();
    let (mut d_x, mut d_w) = (Array::zeros(&x.shape), Array::zeros(&weight.shape));
    for r in 0..x.rows() {
        let (row, d, root) = (x.row(r), d_out.row(r), root(x.row(r), eps));
        let dot: f64 = (0..c).map(|j| d[j] * weight.data[j] * row[j]).sum();
        for i in 0..c {
            d_x.row_mut(r)[i] = d[i] * weight.data[i] / root - row[i] * dot / (c as f64 * root.powi(3));
            d_w.data[i] += d[i] * row[i] / root;
        }
    }
    vec![d_x, d_w]
}
