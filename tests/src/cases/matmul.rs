//! Products of every transposition, with and without batches, from nothing to several tiles.

use patchgpt_tensor::Destination;

use super::{Case, Check, Direct, FLOATS, inputs};
use crate::array::Array;
use crate::array::Placement::{self, Contiguous, Repeated, Sliced, Transposed};
use crate::reference::matmul as reference;

pub(super) fn case(a: &[usize], b: &[usize]) -> Case {
    let (m, k, n) = (a[a.len() - 2], a[a.len() - 1], b[b.len() - 1]);
    let batch: usize = a[..a.len() - 2].iter().product::<usize>().max(b[..b.len() - 2].iter().product());
    Case {
        op: "matmul",
        name: format!("{a:?} @ {b:?}"),
        inputs: inputs(&[a, b]),
        run: Box::new(|x| x[0].matmul(&x[1])),
        forward: Box::new(|x| reference::forward(&x[0], &x[1])),
        backward: Box::new(|x, d| reference::backward(&x[0], &x[1], d)),
        reduction: (k.max(m).max(n)) * batch.max(1),
        flops: 2.0 * (batch * m * k * n) as f64,
        traffic: (batch * (m * k + k * n + m * n)) as f64,
        check: Check::default(),
    }
}

pub(super) fn cases() -> Vec<Case> {
    let shapes: [(&[usize], &[usize]); 14] = [
        (&[1, 1], &[1, 1]),
        (&[1, 7], &[7, 1]),
        (&[5, 1], &[1, 9]),
        (&[13, 17], &[17, 11]),
        (&[64, 32], &[32, 48]),
        (&[3, 0], &[0, 4]),
        (&[0, 3], &[3, 4]),
        (&[3, 4], &[4, 0]),
        (&[2, 3, 5], &[2, 5, 4]),
        (&[2, 3, 5], &[5, 4]),
        (&[3, 5], &[2, 5, 4]),
        (&[2, 2, 3, 4], &[2, 2, 4, 5]),
        (&[1, 67], &[67, 130]),
        (&[70, 33], &[33, 66]),
    ];
    let mut cases: Vec<Case> = shapes.iter().map(|(a, b)| case(a, b)).collect();
    let placements: [[Placement; 2]; 6] = [
        [Contiguous, Transposed],
        [Transposed, Contiguous],
        [Transposed, Transposed],
        [Sliced, Transposed],
        [Transposed, Sliced],
        [Repeated, Contiguous],
    ];
    for p in &placements {
        cases.push(case(&[19, 23], &[23, 10]).placed(p));
        cases.push(case(&[3, 9, 8], &[3, 8, 6]).placed(p));
    }
    cases
}

pub(super) fn large() -> Vec<Case> {
    vec![case(&[100, 100], &[100, 3])]
}

/// `alpha * a b`, written or added to what is there, into a destination of any placement.
fn into(m: usize, k: usize, n: usize, alpha: f64, target: Placement, accumulate: bool) -> Direct {
    let [a, b, start] = [(m, k), (k, n), (m, n)].map(|(r, c)| Array::random(&[r, c], 1.0, (31 * r + c) as u64));
    let (a1, b1, before) = (a.clone(), b.clone(), start.clone());
    Direct {
        op: "matmul",
        name: format!("{alpha} * [{m}, {k}] @ [{k}, {n}] {} {target:?}", if accumulate { "added to" } else { "into" }),
        dtypes: &FLOATS,
        run: Box::new(move |dtype, device| {
            let out = target.place(&start, dtype, device)?;
            if !accumulate {
                out.fill_(f64::NAN)?;
            }
            let place = |x: &Array| Contiguous.place(x, dtype, device);
            place(&a)?.matmul_into(&place(&b)?, alpha, Destination { tensor: &out, accumulate })?;
            Ok(vec![out])
        }),
        expected: Box::new(move |dtype| {
            let product = reference::forward(&a1.rounded(dtype), &b1.rounded(dtype));
            let before = before.rounded(dtype);
            let sum = |i: usize| alpha * product.data[i] + if accumulate { before.data[i] } else { 0.0 };
            vec![Array::from_fn(&before.shape, sum)]
        }),
        reduction: Some(k),
        flops: 2.0 * (m * k * n) as f64,
        traffic: (m * k + k * n + m * n) as f64,
    }
}

pub(super) fn direct() -> Vec<Direct> {
    let mut cases = Vec::new();
    for target in [Contiguous, Transposed, Sliced] {
        for (m, k, n) in [(5, 7, 3), (1, 1, 1), (67, 130, 33), (4, 0, 3)] {
            cases.extend([into(m, k, n, 2.0, target, true), into(m, k, n, -0.5, target, false)]);
        }
    }
    cases
}
