//! Rows joined and split, dimensions of size 1 added and dropped.

use super::{Case, Check, inputs};
use crate::array::Placement;
use crate::reference::reshape as reference;

pub(super) fn case(shape: &[usize], to: &[usize]) -> Case {
    let n: usize = shape.iter().product();
    let (to, for_forward) = (to.to_vec(), to.to_vec());
    Case {
        op: "reshape",
        name: format!("{shape:?} to {to:?}"),
        inputs: inputs(&[shape]),
        run: Box::new(move |x| x[0].reshape(&to)),
        forward: Box::new(move |x| reference::forward(&x[0], &for_forward)),
        backward: Box::new(|x, d| reference::backward(&x[0], d)),
        reduction: 1,
        flops: 0.0,
        traffic: 2.0 * n as f64,
        check: Check::default(),
    }
}

pub(super) fn cases() -> Vec<Case> {
    let table: [(&[usize], &[usize]); 7] = [
        (&[1], &[]),
        (&[], &[1, 1]),
        (&[4, 6], &[3, 8]),
        (&[2, 3, 5], &[30]),
        (&[13], &[1, 13, 1]),
        (&[3, 4], &[3, 4]),
        (&[0, 4], &[2, 0]),
    ];
    let mut cases: Vec<Case> = table.iter().map(|(s, to)| case(s, to)).collect();
    cases.extend(Placement::ALL.iter().map(|&p| case(&[4, 6], &[3, 8]).placed(&[p])));
    cases
}

pub(super) fn large() -> Vec<Case> {
    vec![case(&[100, 100], &[50, 200])]
}
