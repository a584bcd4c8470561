//! Products of every transposition, with and without batches, from nothing to several tiles.

use super::{Case, inputs};
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
    }
}

fn linear(x: &[usize], out: usize) -> Case {
    let k = x[x.len() - 1];
    let base = case(x, &[k, out]);
    let mut inputs = inputs(&[x, &[out, k], &[out]]);
    inputs[1].1 = Contiguous;
    Case {
        name: format!("linear {x:?} with weight [{out}, {k}] and bias"),
        inputs,
        run: Box::new(|x| x[0].linear(&x[1], Some(&x[2]))),
        forward: Box::new(|x| {
            let mut y = reference::forward(&x[0], &transposed(&x[1]));
            for r in 0..y.rows() {
                y.row_mut(r).iter_mut().zip(&x[2].data).for_each(|(y, b)| *y += b);
            }
            y
        }),
        backward: Box::new(|x, d| {
            let gradients = reference::backward(&x[0], &transposed(&x[1]), d);
            let bias = crate::reference::reduce::sum(d, &(0..d.shape.len() - 1).collect::<Vec<_>>());
            let bias = crate::array::Array { shape: x[2].shape.clone(), data: bias.data };
            vec![gradients[0].clone(), transposed(&gradients[1]), bias]
        }),
        ..base
    }
}

fn transposed(x: &crate::array::Array) -> crate::array::Array {
    let (r, c) = (x.shape[0], x.shape[1]);
    crate::array::Array::from_fn(&[c, r], |i| x.data[(i % r) * c + i / r])
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
    cases.extend([
        linear(&[5, 7], 3),
        linear(&[2, 3, 9], 5),
        linear(&[1, 1], 1),
        linear(&[2, 3, 9], 5).placed(&[Transposed, Transposed, Sliced]),
    ]);
    cases
}
