//! Loss of a row: `-sum over valid k of w_k log softmax(logits)[target_k]`, K separate one-target losses.

use patchgpt_tensor::IGNORE_INDEX;

use crate::array::Array;

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v));
    let sum: f64 = row.iter().map(|v| (v - max).exp()).sum();
    row.iter().map(|v| v - max - sum.ln()).collect()
}

/// Losses of the rows; targets [N, K] flat, K the number of weights.
pub fn forward(logits: &Array, targets: &[i32], weights: &[f64]) -> Array {
    let k = weights.len();
    Array::from_fn(&[logits.rows()], |n| {
        let log_p = log_softmax(logits.row(n));
        (0..k)
            .filter(|&j| targets[n * k + j] != IGNORE_INDEX)
            .map(|j| -weights[j] * log_p[targets[n * k + j] as usize])
            .sum()
    })
}

/// Gradient for the logits, as the sum of K one-target gradients `w_k (softmax - onehot)`.
pub fn backward(logits: &Array, targets: &[i32], weights: &[f64], d_losses: &Array) -> Vec<Array> {
    let k = weights.len();
    let mut d_logits = Array::zeros(&logits.shape);
    for n in 0..logits.rows() {
        let p: Vec<f64> = log_softmax(logits.row(n)).iter().map(|l| l.exp()).collect();
        for j in (0..k).filter(|&j| targets[n * k + j] != IGNORE_INDEX) {
            for (v, d) in d_logits.row_mut(n).iter_mut().enumerate() {
                let onehot = if v == targets[n * k + j] as usize { 1.0 } else { 0.0 };
                *d += d_losses.data[n] * weights[j] * (p[v] - onehot);
            }
        }
    }
    vec![d_logits]
}
