//! Rotary embedding over head sizes of 2 to 128.

use patchgpt_tensor::Tensor;

use super::{Case, Check, HEADS, inputs, mistake};
use crate::array::Placement;
use crate::reference::rope as reference;

const BASE: f64 = 10_000.0;

pub(super) fn case(shape: [usize; 4]) -> Case {
    let n: usize = shape.iter().product();
    let backwards = mistake("a rotation the other way", move |x| {
        let (cos, sin) = Tensor::rope_table(0, shape[1], shape[3], BASE, x[0].dtype(), x[0].device())?;
        x[0].rope(&cos, &sin.affine(-1.0, 0.0)?)
    });
    Case {
        op: "rope",
        name: format!("{shape:?}"),
        inputs: inputs(&[&shape]),
        run: Box::new(move |x| {
            let (cos, sin) = Tensor::rope_table(0, shape[1], shape[3], BASE, x[0].dtype(), x[0].device())?;
            x[0].rope(&cos, &sin)
        }),
        forward: Box::new(|x| reference::rotate(&x[0], BASE, 1.0)),
        backward: Box::new(|_, d| vec![reference::rotate(d, BASE, -1.0)]),
        reduction: 2,
        flops: 3.0 * n as f64,
        traffic: 2.0 * n as f64,
        check: Check { mistakes: vec![backwards], ..Check::default() },
    }
}

pub(super) fn large() -> Vec<Case> {
    vec![case([2, 10, 8, 64])]
}

pub(super) fn cases() -> Vec<Case> {
    let shapes = [[1, 1, 1, 2], [2, 5, 3, 8], [1, 17, 1, 6], [3, 4, 2, 64], [0, 4, 2, 4]];
    let mut cases: Vec<Case> = shapes.into_iter().map(case).collect();
    cases.extend(HEADS.iter().map(|&d| case([1, 3, 1, d])));
    cases.extend(Placement::ALL.iter().map(|&p| case([2, 3, 2, 10]).placed(&[p])));
    cases
}
