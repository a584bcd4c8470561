//! Two and three arrays one after the other along every dimension, the same one twice among them.

use patchgpt_autograd::Var;

use super::{Case, Check, inputs};
use crate::array::{Array, Placement};
use crate::reference::concat as reference;

pub(super) fn case(shapes: &[&[usize]], dim: usize) -> Case {
    let inputs = inputs(shapes);
    let n: usize = inputs.iter().map(|(x, _)| x.data.len()).sum();
    Case {
        op: "concat",
        name: format!("{shapes:?} along {dim}"),
        inputs,
        run: Box::new(move |x| Var::concat(&x.iter().collect::<Vec<_>>(), dim)),
        forward: Box::new(move |x| reference::forward(x, dim)),
        backward: Box::new(move |x, d| reference::backward(x, dim, d)),
        reduction: 1,
        flops: 0.0,
        traffic: 2.0 * n as f64,
        check: Check::default(),
    }
}

/// An array followed by itself.
fn twice(shape: &[usize], dim: usize) -> Case {
    let both = |x: &[Array]| [x[0].clone(), x[0].clone()];
    Case {
        name: format!("{shape:?} with itself along {dim}"),
        run: Box::new(move |x| Var::concat(&[&x[0], &x[0]], dim)),
        forward: Box::new(move |x| reference::forward(&both(x), dim)),
        backward: Box::new(move |x, d| {
            let parts = reference::backward(&both(x), dim, d);
            vec![Array::from_fn(&x[0].shape, |i| parts[0].data[i] + parts[1].data[i])]
        }),
        ..case(&[shape], dim)
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case(&[&[1], &[1]], 0),
        case(&[&[3, 2], &[3, 5]], 1),
        case(&[&[3, 2], &[1, 2], &[4, 2]], 0),
        case(&[&[2, 3, 5], &[2, 7, 5]], 1),
        case(&[&[0, 3], &[2, 3]], 0),
        case(&[&[2, 0], &[2, 3]], 1),
        twice(&[3, 4], 0),
        twice(&[3, 4], 1),
    ];
    for placements in [[Placement::Sliced, Placement::Transposed], [Placement::Transposed, Placement::Repeated]] {
        cases.push(case(&[&[3, 2], &[3, 5]], 1).placed(&placements));
    }
    cases
}

pub(super) fn large() -> Vec<Case> {
    vec![case(&[&[100, 100], &[100, 3]], 1)]
}
