//! Attention of a joined projection [B, T, (H + 2G) D] with and without rotation: rotate, attend, join the heads.

use patchgpt_tensor::Tensor;

use super::{Case, inputs};
use crate::array::{Array, Placement};
use crate::reference::{causal_attention, rope};

const BASE: f64 = 10_000.0;

/// The heads `start..start + count` of the joined array, as [B, T, count, D].
fn heads(x: &Array, start: usize, count: usize, d: usize) -> Array {
    let (b, t) = (x.shape[0], x.shape[1]);
    Array::from_fn(&[b, t, count, d], |i| x.row(i / (count * d))[start * d + i % (count * d)])
}

fn rotated(x: &Array, rotate: bool, sign: f64) -> Array {
    if rotate { rope::rotate(x, BASE, sign) } else { x.clone() }
}

fn case([b, t]: [usize; 2], [h, g, d]: [usize; 3], rotate: bool) -> Case {
    let shape = [b, t, (h + 2 * g) * d];
    let scale = 1.0 / (d as f64).sqrt();
    let split = move |x: &Array| {
        (rotated(&heads(x, 0, h, d), rotate, 1.0), rotated(&heads(x, h, g, d), rotate, 1.0), heads(x, h + g, g, d))
    };
    Case {
        op: "self_attention",
        name: format!("{shape:?} with {h} heads on {g}, {}", if rotate { "rotated" } else { "not rotated" }),
        inputs: inputs(&[&shape]),
        run: Box::new(move |x| {
            let table = Tensor::rope_table(0, t, d, BASE, x[0].dtype(), x[0].device())?;
            x[0].self_attention(h, g, rotate.then_some((&table.0, &table.1)), scale)
        }),
        forward: Box::new(move |x| {
            let (q, k, v) = split(&x[0]);
            let out = causal_attention::forward(&q, &k, &v, scale);
            Array { shape: vec![b, t, h * d], data: out.data }
        }),
        backward: Box::new(move |x, d_out| {
            let (q, k, v) = split(&x[0]);
            let d_out = Array { shape: vec![b, t, h, d], data: d_out.data.clone() };
            let gradients = causal_attention::backward(&q, &k, &v, scale, &d_out);
            let (d_q, d_k, d_v) =
                (rotated(&gradients[0], rotate, -1.0), rotated(&gradients[1], rotate, -1.0), &gradients[2]);
            let part = |p: &Array, row: usize, column: usize| p.data[row * p.shape[2] * d + column];
            vec![Array::from_fn(&shape, |i| {
                let (row, column) = (i / shape[2], i % shape[2]);
                match column / d {
                    head if head < h => part(&d_q, row, column),
                    head if head < h + g => part(&d_k, row, column - h * d),
                    _ => part(d_v, row, column - (h + g) * d),
                }
            })]
        }),
        reduction: (t * h / g).max(d),
        flops: 2.0 * (b * h * t * (t + 1) * d) as f64,
        traffic: (b * t * (2 * h + 2 * g) * d) as f64,
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for rotate in [false, true] {
        for (n, h) in [([1, 1], [1, 1, 2]), ([2, 5], [2, 2, 4]), ([1, 7], [4, 2, 6]), ([1, 66], [2, 1, 8])] {
            cases.push(case(n, h, rotate));
        }
        cases.push(case([2, 5], [2, 1, 4], rotate).placed(&[Placement::Transposed]));
        cases.push(case([2, 5], [2, 1, 4], rotate).placed(&[Placement::Sliced]));
    }
    cases
}
