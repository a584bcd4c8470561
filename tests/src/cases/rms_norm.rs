//! RMSNorm over rows of 1 and more.

use super::{Case, Check, inputs, with_addend};
use crate::array::Placement::{Contiguous, Repeated, Sliced, Transposed};
use crate::reference::rms_norm as reference;

const EPS: f64 = 1e-5;

pub(super) fn case(shape: &[usize]) -> Case {
    let c = shape[shape.len() - 1];
    let inputs = inputs(&[shape, &[c]]);
    let n = inputs[0].0.data.len();
    Case {
        op: "rms_norm",
        name: format!("{shape:?}"),
        inputs,
        run: Box::new(|x| x[0].rms_norm(&x[1], EPS)),
        forward: Box::new(|x| reference::forward(&x[0], &x[1], EPS)),
        backward: Box::new(|x, d| reference::backward(&x[0], &x[1], EPS, d)),
        reduction: c.max(n / c.max(1)),
        flops: 4.0 * n as f64,
        traffic: 2.0 * n as f64,
        check: Check::default(),
    }
}

fn case_with_addend(shape: &[usize]) -> Case {
    with_addend(case(shape), Box::new(|x| x[0].add_rms_norm(&x[1], &x[2], EPS)))
}

pub(super) fn large() -> Vec<Case> {
    vec![case(&[100, 100])]
}

pub(super) fn cases() -> Vec<Case> {
    let shapes: [&[usize]; 8] = [&[1], &[7], &[3, 1], &[5, 33], &[2, 3, 8], &[130, 16], &[67, 5], &[0, 4]];
    let mut cases: Vec<Case> = shapes.iter().map(|s| case(s)).collect();
    cases.extend(
        [[Transposed, Contiguous], [Sliced, Sliced], [Repeated, Contiguous]].iter().map(|p| case(&[6, 9]).placed(p)),
    );
    let shapes: [&[usize]; 5] = [&[7], &[5, 33], &[2, 3, 8], &[67, 16], &[0, 4]];
    cases.extend(shapes.map(case_with_addend));
    cases.extend(
        [[Transposed, Contiguous], [Sliced, Transposed], [Contiguous, Repeated]]
            .iter()
            .map(|p| case_with_addend(&[6, 9]).placed(p)),
    );
    cases
}
