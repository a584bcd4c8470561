//! Orders of two, three and four dimensions.

use super::{Case, Check, inputs};
use crate::array::Placement;
use crate::reference::permute as reference;

pub(super) fn case(shape: &[usize], order: &[usize]) -> Case {
    let n: usize = shape.iter().product();
    let (o, p, q) = (order.to_vec(), order.to_vec(), order.to_vec());
    Case {
        op: "permute",
        name: format!("{shape:?} in the order {order:?}"),
        inputs: inputs(&[shape]),
        run: Box::new(move |x| x[0].permute(&o)),
        forward: Box::new(move |x| reference::forward(&x[0], &p)),
        backward: Box::new(move |x, d| reference::backward(&x[0], &q, d)),
        reduction: 1,
        flops: 0.0,
        traffic: n as f64,
        check: Check::default(),
    }
}

pub(super) fn cases() -> Vec<Case> {
    let table: [(&[usize], &[usize]); 7] = [
        (&[1], &[0]),
        (&[4, 3], &[1, 0]),
        (&[4, 3], &[0, 1]),
        (&[2, 3, 5], &[2, 0, 1]),
        (&[2, 3, 5], &[1, 2, 0]),
        (&[2, 1, 3, 7], &[3, 1, 0, 2]),
        (&[0, 4], &[1, 0]),
    ];
    let mut cases: Vec<Case> = table.iter().map(|(s, o)| case(s, o)).collect();
    cases.extend(Placement::ALL.iter().map(|&p| case(&[2, 3, 5], &[2, 0, 1]).placed(&[p])));
    cases
}

pub(super) fn large() -> Vec<Case> {
    vec![case(&[100, 100], &[1, 0])]
}
