//! Softmax over rows of 1 and more, large logits included.

use super::{Case, inputs};
use crate::array::Placement;
use crate::reference::softmax as reference;

pub(super) fn case(shape: &[usize]) -> Case {
    let inputs = inputs(&[shape]);
    let n = inputs[0].0.data.len() as f64;
    Case {
        op: "softmax",
        name: format!("{shape:?}"),
        inputs,
        run: Box::new(|x| x[0].softmax()),
        forward: Box::new(|x| reference::forward(&x[0])),
        backward: Box::new(|x, d| reference::backward(&x[0], d)),
        reduction: shape.last().copied().unwrap_or(1),
        flops: 4.0 * n,
        traffic: 2.0 * n,
    }
}

pub(super) fn cases() -> Vec<Case> {
    let shapes: [&[usize]; 7] = [&[1], &[5], &[3, 1], &[4, 33], &[2, 3, 7], &[3, 130], &[0, 5]];
    let mut cases: Vec<Case> = shapes.iter().map(|s| case(s)).collect();
    cases.extend(Placement::ALL.iter().map(|&p| case(&[6, 9]).placed(&[p])));
    cases
}
