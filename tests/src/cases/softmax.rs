//! Softmax over rows of 1 and more, with logits up to 1e4 and masks of -inf.

use super::{Case, Check, STEP_OF_LARGE_LOGITS, inputs};
use crate::array::{Array, Placement};
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
        // A row of one is 1, whatever it holds.
        check: Check { zero_inputs: if shape.last() == Some(&1) { vec![0] } else { vec![] }, ..Check::default() },
    }
}

pub(super) fn cases() -> Vec<Case> {
    let shapes: [&[usize]; 7] = [&[1], &[5], &[3, 1], &[4, 33], &[2, 3, 7], &[3, 130], &[0, 5]];
    let mut cases: Vec<Case> = shapes.iter().map(|s| case(s)).collect();
    cases.extend(Placement::ALL.iter().map(|&p| case(&[6, 9]).placed(&[p])));
    cases.extend([large_logits(&[4, 50]), masked(&[6, 9])]);
    cases
}

/// Logits up to 1e4: only differences from the maximum may be exponentiated.
fn large_logits(shape: &[usize]) -> Case {
    let mut case = case(shape);
    case.inputs[0].0 = Array::random(shape, 1e4, 6);
    // The two largest of each row are close, or every row would be one 1 among zeros, with a gradient of zero.
    for r in 0..case.inputs[0].0.rows() {
        let row = case.inputs[0].0.row_mut(r);
        row[..2].copy_from_slice(&[1e4, 1e4 - 0.5]);
    }
    case.name += ", logits up to 1e4";
    case.check.step = Some(STEP_OF_LARGE_LOGITS);
    case
}

/// Row r sees its first r + 1 columns: the others are -inf.
fn masked(shape: &[usize]) -> Case {
    let mut case = case(shape);
    for r in 0..case.inputs[0].0.rows() {
        case.inputs[0].0.row_mut(r)[r + 1..].fill(f64::NEG_INFINITY);
    }
    case.name += ", masked with -inf";
    case.check.has_infinities = true;
    case
}

pub(super) fn large() -> Vec<Case> {
    vec![case(&[100, 100])]
}
