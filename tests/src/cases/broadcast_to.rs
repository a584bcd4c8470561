//! Repetition of dimensions of size 1, of new leading ones, and of nothing.

use super::{Case, Check, inputs};
use crate::array::Placement;
use crate::reference::broadcast_to as reference;

pub(super) fn case(shape: &[usize], to: &[usize]) -> Case {
    let (n, out) = (shape.iter().product::<usize>(), to.iter().product::<usize>());
    let (to, for_forward) = (to.to_vec(), to.to_vec());
    Case {
        op: "broadcast_to",
        name: format!("{shape:?} to {to:?}"),
        inputs: inputs(&[shape]),
        run: Box::new(move |x| x[0].broadcast_to(&to)),
        forward: Box::new(move |x| reference::forward(&x[0], &for_forward)),
        backward: Box::new(|x, d| reference::backward(&x[0], d)),
        reduction: out.checked_div(n).unwrap_or(1),
        flops: 0.0,
        traffic: n as f64,
        check: Check::default(),
    }
}

pub(super) fn cases() -> Vec<Case> {
    let table: [(&[usize], &[usize]); 8] = [
        (&[1], &[1]),
        (&[], &[3, 2]),
        (&[7], &[5, 7]),
        (&[3, 1], &[2, 3, 4]),
        (&[1, 11, 1], &[3, 11, 5]),
        (&[2, 3], &[2, 3]),
        (&[1, 3], &[0, 3]),
        (&[0, 1], &[0, 4]),
    ];
    let mut cases: Vec<Case> = table.iter().map(|(x, to)| case(x, to)).collect();
    cases.extend(Placement::ALL.iter().map(|&p| case(&[4, 1, 5], &[4, 3, 5]).placed(&[p])));
    cases
}

pub(super) fn large() -> Vec<Case> {
    vec![case(&[100, 1, 100], &[100, 2, 100])]
}
