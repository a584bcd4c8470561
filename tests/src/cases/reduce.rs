//! Sums over every choice of dimensions, and means.

use super::{Case, inputs};
use crate::array::Placement;
use crate::reference::reduce as reference;

fn sum(shape: &[usize], dims: &[usize]) -> Case {
    let inputs = inputs(&[shape]);
    let n = inputs[0].0.data.len();
    let (d, e, f) = (dims.to_vec(), dims.to_vec(), dims.to_vec());
    Case {
        op: "reduce",
        name: format!("sum of {shape:?} over {dims:?}"),
        inputs,
        run: Box::new(move |x| x[0].sum(&d)),
        forward: Box::new(move |x| reference::sum(&x[0], &e)),
        backward: Box::new(move |x, g| reference::sum_backward(&x[0], &f, g)),
        reduction: n,
        flops: n as f64,
        traffic: n as f64,
    }
}

fn mean(shape: &[usize], dims: &[usize]) -> Case {
    let count: usize = dims.iter().map(|&d| shape[d]).product();
    let scale = 1.0 / count as f64;
    let (d, e, f) = (dims.to_vec(), dims.to_vec(), dims.to_vec());
    let scaled = move |mut a: crate::array::Array| {
        a.data.iter_mut().for_each(|x| *x *= scale);
        a
    };
    Case {
        name: format!("mean of {shape:?} over {dims:?}"),
        run: Box::new(move |x| x[0].mean(&d)),
        forward: Box::new(move |x| scaled(reference::sum(&x[0], &e))),
        backward: Box::new(move |x, g| reference::sum_backward(&x[0], &f, g).into_iter().map(scaled).collect()),
        ..sum(shape, dims)
    }
}

pub(super) fn cases() -> Vec<Case> {
    let table: [(&[usize], &[usize]); 12] = [
        (&[7], &[0]),
        (&[1], &[0]),
        (&[5, 33], &[1]),
        (&[5, 33], &[0]),
        (&[5, 33], &[0, 1]),
        (&[2, 3, 4, 5], &[1, 3]),
        (&[2, 3, 4, 5], &[0, 2]),
        (&[2, 3, 4, 5], &[1, 2]),
        (&[3, 4], &[]),
        (&[0, 4], &[0]),
        (&[4, 0], &[0]),
        (&[130, 70], &[0]),
    ];
    let mut cases: Vec<Case> = table.iter().map(|(s, d)| sum(s, d)).collect();
    cases.extend([mean(&[5, 33], &[1]), mean(&[2, 3, 4], &[0, 2])]);
    for placement in [Placement::Transposed, Placement::Sliced, Placement::Repeated] {
        cases.push(sum(&[6, 11], &[0]).placed(&[placement]));
        cases.push(sum(&[6, 11], &[1]).placed(&[placement]));
    }
    cases
}
