//! Functions of one argument over their domains, functions of two with every kind of broadcasting.

use patchgpt_autograd::{Result, Var};
use patchgpt_tensor::{Binary, Unary};

use super::{Case, inputs};
use crate::array::Placement::{self, Contiguous, Repeated, Sliced, Transposed};
use crate::reference::elementwise as reference;

type Function1 = fn(&Var) -> Result<Var>;
type Function2 = fn(&Var, &Var) -> Result<Var>;

fn unary(op: Unary, shape: &[usize], run: Function1) -> Case {
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
        forward: Box::new(move |x| reference::unary(op, &x[0])),
        backward: Box::new(move |x, d| reference::unary_backward(op, &x[0], d)),
        reduction: 1,
        flops: n,
        traffic: 2.0 * n,
    }
}

fn binary(op: Binary, a: &[usize], b: &[usize], run: Function2) -> Case {
    let mut inputs = inputs(&[a, b]);
    if op == Binary::Div {
        inputs[1].0.data.iter_mut().for_each(|x| *x = x.signum() * (x.abs() + 0.3));
    }
    let n: usize = a.iter().product::<usize>().max(b.iter().product());
    Case {
        op: "binary",
        name: format!("{op:?} {a:?} {b:?}"),
        inputs,
        run: Box::new(move |x| run(&x[0], &x[1])),
        forward: Box::new(move |x| reference::binary(op, &x[0], &x[1])),
        backward: Box::new(move |x, d| reference::binary_backward(op, &x[0], &x[1], d)),
        reduction: n,
        flops: n as f64,
        traffic: 3.0 * n as f64,
    }
}

pub(super) fn cases() -> Vec<Case> {
    let unaries: [(Unary, Function1); 9] = [
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
    let binaries: [(Binary, Function2); 4] =
        [(Binary::Add, Var::add), (Binary::Sub, Var::sub), (Binary::Mul, Var::mul), (Binary::Div, Var::div)];
    let mut cases = Vec::new();
    for (op, run) in unaries {
        for shape in [&[1][..], &[], &[3, 5], &[7, 1, 33], &[0, 4]] {
            cases.push(unary(op, shape, run));
        }
        for placement in [Transposed, Sliced, Repeated] {
            cases.push(unary(op, &[5, 19], run).placed(&[placement]));
        }
    }
    for (op, run) in binaries {
        for (a, b) in [
            (&[6, 17][..], &[6, 17][..]),
            (&[6, 17], &[17]),
            (&[17], &[6, 17]),
            (&[4, 1, 3], &[5, 1]),
            (&[2, 3, 5], &[2, 1, 5]),
            (&[3, 4], &[]),
            (&[], &[]),
            (&[0, 3], &[3]),
            (&[1, 1], &[1]),
        ] {
            cases.push(binary(op, a, b, run));
        }
        let placements: [[Placement; 2]; 4] =
            [[Transposed, Contiguous], [Contiguous, Transposed], [Sliced, Repeated], [Transposed, Sliced]];
        cases.extend(placements.iter().map(|p| binary(op, &[9, 13], &[9, 13], run).placed(p)));
    }
    cases
}
