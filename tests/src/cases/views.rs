//! Views and copies: permute, narrow, reshape, broadcast, concatenation.

use patchgpt_autograd::{Result, Var};

use super::{Case, inputs};
use crate::array::{Array, Placement};

/// A view of one input, described by where each element of the output comes from.
fn view(name: &str, shape: &[usize], out: &[usize], from: fn(usize) -> usize, run: fn(&Var) -> Result<Var>) -> Case {
    let inputs = inputs(&[shape]);
    let n = out.iter().product::<usize>();
    let out = out.to_vec();
    Case {
        op: "copy",
        name: format!("{name} {shape:?} to {out:?}"),
        inputs,
        // A product with itself, so that the view is used twice and as a strided operand.
        run: Box::new(move |x| run(&x[0])?.mul(&run(&x[0])?)),
        forward: Box::new(move |x| Array::from_fn(&out, |i| x[0].data[from(i)].powi(2))),
        backward: Box::new(move |x, d| {
            let mut d_x = Array::zeros(&x[0].shape);
            for (i, d) in d.data.iter().enumerate() {
                d_x.data[from(i)] += 2.0 * x[0].data[from(i)] * d;
            }
            vec![d_x]
        }),
        reduction: 8,
        flops: n as f64,
        traffic: 2.0 * n as f64,
    }
}

fn concat(placements: [Placement; 2]) -> Case {
    let inputs = inputs(&[&[3, 2], &[3, 5]]);
    Case {
        op: "copy",
        name: "concat [3, 2] and [3, 5] along 1".into(),
        inputs,
        run: Box::new(|x| Var::concat(&[&x[0], &x[1]], 1)),
        forward: Box::new(|x| {
            Array::from_fn(&[3, 7], |i| if i % 7 < 2 { x[0].row(i / 7)[i % 7] } else { x[1].row(i / 7)[i % 7 - 2] })
        }),
        backward: Box::new(|_, d| {
            vec![Array::from_fn(&[3, 2], |i| d.row(i / 2)[i % 2]), Array::from_fn(&[3, 5], |i| d.row(i / 5)[2 + i % 5])]
        }),
        reduction: 1,
        flops: 0.0,
        traffic: 42.0,
    }
    .placed(&placements)
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for placement in Placement::ALL {
        let p = [placement];
        cases.extend([
            view("permute", &[4, 3], &[3, 4], |i| (i % 4) * 3 + i / 4, |x| x.permute(&[1, 0])).placed(&p),
            view("narrow", &[4, 5], &[4, 2], |i| (i / 2) * 5 + 1 + i % 2, |x| x.narrow(1, 1, 2)).placed(&p),
            view("reshape", &[4, 6], &[3, 8], |i| i, |x| x.reshape(&[3, 8])).placed(&p),
            view("broadcast", &[3, 1], &[2, 3, 4], |i| (i / 4) % 3, |x| x.broadcast_to(&[2, 3, 4])).placed(&p),
        ]);
    }
    cases.push(concat([Placement::Contiguous, Placement::Contiguous]));
    cases.push(concat([Placement::Sliced, Placement::Transposed]));
    cases
}
