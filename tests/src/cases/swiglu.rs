//! SwiGLU over rows of every even width.

use super::{Case, Check, inputs};
use crate::array::Placement;
use crate::reference::swiglu as reference;

pub(super) fn case(shape: &[usize]) -> Case {
    let mut inputs = inputs(&[shape]);
    inputs[0].0.data.iter_mut().for_each(|x| *x *= 4.0);
    let n = inputs[0].0.data.len() as f64;
    Case {
        op: "swiglu",
        name: format!("{shape:?}"),
        inputs,
        run: Box::new(|x| x[0].swiglu()),
        forward: Box::new(|x| reference::forward(&x[0])),
        backward: Box::new(|x, d| reference::backward(&x[0], d)),
        reduction: 1,
        flops: 10.0 * n,
        traffic: 1.5 * n,
        check: Check::default(),
    }
}

pub(super) fn large() -> Vec<Case> {
    vec![case(&[100, 100])]
}

pub(super) fn cases() -> Vec<Case> {
    let widths = [1, 2, 7, 8, 33, 64];
    let mut cases: Vec<Case> = widths.iter().map(|w| case(&[3, 2 * w])).collect();
    cases.extend([case(&[2]), case(&[1, 6]), case(&[2, 3, 10]), case(&[0, 8])]);
    cases.extend(Placement::ALL.iter().map(|&p| case(&[6, 10]).placed(&[p])));
    cases
}
