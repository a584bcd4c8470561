//! Functions of two arguments with every kind of broadcasting; maxima and minima, which have no gradient here.

use patchgpt_autograd::{Result, Var};
use patchgpt_tensor::{Binary, Destination, Tensor};

use super::{Case, Check, Direct, FLOATS, inputs};
use crate::array::Placement::{Contiguous, Repeated, Sliced, Transposed};
use crate::array::{Array, Placement};
use crate::reference::binary as reference;

type Function = fn(&Var, &Var) -> Result<Var>;

fn case(op: Binary, a: &[usize], b: &[usize], run: Function) -> Case {
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
        forward: Box::new(move |x| reference::forward(op, &x[0], &x[1])),
        backward: Box::new(move |x, d| reference::backward(op, &x[0], &x[1], d)),
        reduction: n,
        flops: n as f64,
        traffic: 3.0 * n as f64,
        check: Check::default(),
    }
}

const ALL: [(Binary, Function); 4] =
    [(Binary::Add, Var::add), (Binary::Sub, Var::sub), (Binary::Mul, Var::mul), (Binary::Div, Var::div)];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (op, run) in ALL {
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
            cases.push(case(op, a, b, run));
        }
        let placements: [[Placement; 2]; 4] =
            [[Transposed, Contiguous], [Contiguous, Transposed], [Sliced, Repeated], [Transposed, Sliced]];
        cases.extend(placements.iter().map(|p| case(op, &[9, 13], &[9, 13], run).placed(p)));
    }
    cases
}

/// Ten thousand elements, with a factor of as many and with one that is broadcast along the rows.
pub(super) fn large() -> Vec<Case> {
    let sizes = [&[100, 100][..], &[100]];
    ALL.into_iter().flat_map(|(op, run)| sizes.map(|b| case(op, &[100, 100], b, run))).collect()
}

/// `op` of two arrays with a NaN on either side, written or added to what is there.
fn extremum(op: Binary, placements: [Placement; 2], accumulate: bool) -> Direct {
    let mut values = inputs(&[&[5, 33], &[5, 33]]);
    values[0].0.data[7] = f64::NAN;
    values[1].0.data[40] = f64::NAN;
    let start = Array::random(&[5, 33], 1.0, 3);
    let (a, b, before) = (values[0].0.clone(), values[1].0.clone(), start.clone());
    Direct {
        op: "binary",
        name: format!("{op:?} {placements:?}, {}", if accumulate { "added" } else { "written" }),
        dtypes: &FLOATS,
        run: Box::new(move |dtype, device| {
            let place = |i: usize| placements[i].place(&values[i].0, dtype, device);
            let out = Tensor::from_slice(&start.data, &start.shape, device)?.cast(dtype)?;
            place(0)?.binary_into(op, &place(1)?, Destination { tensor: &out, accumulate })?;
            Ok(vec![out])
        }),
        expected: Box::new(move |dtype| {
            let of = |i: usize, x: &Array| placements[i].values(&x.rounded(dtype));
            let mut out = reference::forward(op, &of(0, &a), &of(1, &b));
            for (out, before) in out.data.iter_mut().zip(&before.rounded(dtype).data) {
                *out = if out.is_nan() { f64::NAN } else { *out + if accumulate { *before } else { 0.0 } };
            }
            vec![out]
        }),
        reduction: Some(1),
        flops: 165.0,
        traffic: 3.0 * 165.0,
    }
}

pub(super) fn direct() -> Vec<Direct> {
    let mut cases = Vec::new();
    for op in [Binary::Max, Binary::Min] {
        for placements in [[Contiguous, Contiguous], [Transposed, Sliced], [Repeated, Transposed]] {
            cases.extend([false, true].map(|accumulate| extremum(op, placements, accumulate)));
        }
    }
    cases
}

/// The function of number `choice` over two shapes.
pub(super) fn sized(a: &[usize], b: &[usize], choice: usize) -> Case {
    let (op, run) = ALL[choice % ALL.len()];
    case(op, a, b, run)
}
