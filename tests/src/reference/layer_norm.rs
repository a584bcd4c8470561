//! `y = (x - mean) / sd * w + b`, `sd = sqrt(var + eps)` with the biased variance; the gradient differentiates mean and variance term by term.

use crate::array::Array;

fn statistics(row: &[f64], eps: f64) -> (f64, f64) {
    let n = row.len() as f64;
    let mean = row.iter().sum::<f64>() / n;
    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    (mean, (variance + eps).sqrt())
}

/// The normalised rows.
pub fn forward(x: &Array, weight: &Array, bias: &Array, eps: f64) -> Array {
    let mut out = x.clone();
    for r in 0..x.rows() {
        let (mean, sd) = statistics(x.row(r), eps);
        for (i, o) in out.row_mut(r).iter_mut().enumerate() {
            *o = (*o - mean) / sd * weight.data[i] + bias.data[i];
        }
    }
    out
}

/// Gradients for x, the weight and the bias.
pub fn backward(x: &Array, weight: &Array, eps: f64, d_out: &Array) -> Vec<Array> {
    let c = x.width();
    let n = c as f64;
    let mut d_x = Array::zeros(&x.shape);
    let (mut d_w, mut d_b) = (Array::zeros(&weight.shape), Array::zeros(&weight.shape));
    for r in 0..x.rows() {
        let (mean, sd) = statistics(x.row(r), eps);
        let g: Vec<f64> = (0..c).map(|i| d_out.row(r)[i] * weight.data[i]).collect();
        let d_variance: f64 = (0..c).map(|i| g[i] * (x.row(r)[i] - mean) * -0.5 / sd.powi(3)).sum();
        let d_mean: f64 = g.iter().map(|g| -g / sd).sum();
        for (i, g) in g.iter().enumerate() {
            let centred = x.row(r)[i] - mean;
            d_x.row_mut(r)[i] = g / sd + d_variance * 2.0 * centred / n + d_mean / n;
            d_w.data[i] += d_out.row(r)[i] * centred / sd;
            d_b.data[i] += d_out.row(r)[i];
        }
    }
    vec![d_x, d_w, d_b]
}
