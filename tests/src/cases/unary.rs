//! Functions of one argument over their domains.

use patchgpt_autograd::{Result, Var};
use patchgpt_tensor::Unary;

use super::{Case, Check, inputs};
use crate::array::Placement::{Repeated, Sliced, Transposed};
use crate::reference::unary as reference;

type Function = fn(&Var) -> Result<Var>;

fn case(op: Unary, shape: &[usize], run: Function) -> Case {
    let mut inputs = inputs(&[shape]);
    if matches!(op, Unary::Log | Unary::Sqrt | Unary::Recip) {
        // Away from the pole and the kink at 0.
        inputs[0].0.data.iter_mut().for_each(|x| *x = x.abs() + 0.3);
    }
    let n = inputs[0].0.data.len() as f64;
    Case {
        op: "unary",
        name: format!("{op:?} {shape:?}"),
        inputs,
        run: Box::new(move |x| run(&x[0])),
        forward: Box::new(move |x| reference::forward(op, &x[0])),
        backward: Box::new(move |x, d| reference::backward(op, &x[0], d)),
        reduction: 1,
        flops: n,
        traffic: 2.0 * n,
        check: Check::default(),
    }
}

const ALL: [(Unary, Function); 9] = [
    (Unary::Neg, Var::neg),
    (Unary::Exp, Var::exp),
    (Unary::Log, Var::log),
    (Unary::Sqrt, Var::sqrt),
    (Unary::Tanh, Var::tanh),
    (Unary::Sigmoid, Var::sigmoid),
    (Unary::Square, Var::square),
    (Unary::Recip, Var::recip),
    (Unary::Affine { mul: -1.5, add: 0.25 }, |x| x.affine(-1.5, 0.25)),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (op, run) in ALL {
        for shape in [&[1][..], &[], &[3, 5], &[7, 1, 33], &[0, 4]] {
            cases.push(case(op, shape, run));
        }
        for placement in [Transposed, Sliced, Repeated] {
            cases.push(case(op, &[5, 19], run).placed(&[placement]));
        }
    }
    cases.push(case(Unary::Affine { mul: 1.0, add: 3.0 }, &[3, 5], |x| x.affine(1.0, 3.0)));
    cases
}

/// Ten thousand elements through every function.
pub(super) fn large() -> Vec<Case> {
    ALL.into_iter().map(|(op, run)| case(op, &[100, 100], run)).collect()
}

/// The function of number `choice` over a shape.
pub(super) fn sized(shape: &[usize], choice: usize) -> Case {
    let (op, run) = ALL[choice % ALL.len()];
    case(op, shape, run)
}
