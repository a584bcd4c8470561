//! `loss = scale * sum over rows of cross_entropy(x W^T)`: the product and the loss one after the other, x [N, C], W [V, C].

use super::{cross_entropy, linear};
use crate::array::Array;

/// The loss, 0-d.
pub fn forward(x: &Array, weight: &Array, targets: &[i32], weights: &[f64], scale: f64) -> Array {
    let losses = cross_entropy::forward(&linear::forward(x, weight, None), targets, weights);
    Array { shape: vec![], data: vec![scale * losses.data.iter().sum::<f64>()] }
}

/// Gradients for x and the weight.
pub fn backward(x: &Array, weight: &Array, targets: &[i32], weights: &[f64], scale: f64, d_loss: &Array) -> Vec<Array> {
    let logits = linear::forward(x, weight, None);
    let d_losses = Array::from_fn(&[x.rows()], |_| scale * d_loss.data[0]);
    let d_logits = &cross_entropy::backward(&logits, targets, weights, &d_losses)[0];
    linear::backward(&[x.clone(), weight.clone()], d_logits)
}
