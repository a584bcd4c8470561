//! Slices along every dimension: one element, all, none, at the end, and two that overlap.

use super::{Case, Check, inputs};
use crate::array::{Array, Placement};
use crate::reference::narrow as reference;

pub(super) fn case(shape: &[usize], dim: usize, start: usize, length: usize) -> Case {
    let n: usize = shape.iter().product::<usize>() / shape[dim].max(1) * length;
    let mistakes = match start + length < shape[dim] {
        true => vec![super::mistake("the slice after it", move |x| x[0].narrow(dim, start + 1, length))],
        false => vec![],
    };
    Case {
        op: "narrow",
        name: format!("{length} from {start} along {dim} of {shape:?}"),
        inputs: inputs(&[shape]),
        run: Box::new(move |x| x[0].narrow(dim, start, length)),
        forward: Box::new(move |x| reference::forward(&x[0], dim, start, length)),
        backward: Box::new(move |x, d| reference::backward(&x[0], dim, start, d)),
        reduction: 1,
        flops: 0.0,
        traffic: n as f64,
        check: Check { mistakes, ..Check::default() },
    }
}

/// The product of a slice with the one that begins one element later: overlapping parts of one gradient.
fn overlapping(shape: &[usize], dim: usize) -> Case {
    let length = shape[dim] - 1;
    Case {
        name: format!("overlapping slices along {dim} of {shape:?}"),
        run: Box::new(move |x| x[0].narrow(dim, 0, length)?.mul(&x[0].narrow(dim, 1, length)?)),
        forward: Box::new(move |x| {
            let (a, b) = (reference::forward(&x[0], dim, 0, length), reference::forward(&x[0], dim, 1, length));
            Array::from_fn(&a.shape, |i| a.data[i] * b.data[i])
        }),
        backward: Box::new(move |x, d| {
            let times = |start: usize| {
                let other = reference::forward(&x[0], dim, start, length);
                Array::from_fn(&d.shape, |i| d.data[i] * other.data[i])
            };
            let first = &reference::backward(&x[0], dim, 0, &times(1))[0];
            let second = &reference::backward(&x[0], dim, 1, &times(0))[0];
            vec![Array::from_fn(&x[0].shape, |i| first.data[i] + second.data[i])]
        }),
        check: Check::default(),
        ..case(shape, dim, 0, length)
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case(&[1], 0, 0, 1),
        case(&[7], 0, 3, 1),
        case(&[4, 5], 1, 1, 2),
        case(&[4, 5], 0, 1, 3),
        case(&[2, 3, 11], 2, 4, 7),
        case(&[2, 3, 5], 1, 0, 3),
        case(&[3, 4], 0, 1, 0),
        case(&[0, 4], 1, 1, 2),
        overlapping(&[3, 7], 1),
        overlapping(&[5, 3], 0),
    ];
    cases.extend(Placement::ALL.iter().map(|&p| case(&[4, 5], 1, 1, 2).placed(&[p])));
    cases
}

pub(super) fn large() -> Vec<Case> {
    vec![case(&[101, 100], 0, 0, 100)]
}
