//! Causal attention: one position, several blocks, grouped heads, more keys than queries, every head size.

use super::{Case, Check, HEADS, inputs, mistake};
use crate::array::Placement::{Contiguous, Repeated, Sliced, Transposed};
use crate::reference::causal_attention as reference;

/// q [B, T, H, D], k and v [B, S, G, D].
pub(super) fn case([b, t, s]: [usize; 3], [h, g, d]: [usize; 3]) -> Case {
    let (q, kv) = ([b, t, h, d], [b, s, g, d]);
    let scale = 1.0 / (d as f64).sqrt();
    let mut inputs = inputs(&[&q, &kv, &kv]);
    // Scores of a few units, so that the softmax is neither flat nor saturated.
    inputs[..2].iter_mut().for_each(|(x, _)| x.data.iter_mut().for_each(|v| *v *= 2.0));
    // A query that sees one key gives it all its weight, whatever the score.
    let zero_inputs = if s == 1 { vec![0, 1] } else { vec![] };
    let mistakes = vec![
        mistake("a scale that was dropped", |x| x[0].causal_attention(&x[1], &x[2], 1.0)),
        mistake("keys taken for values", move |x| x[0].causal_attention(&x[2], &x[1], scale)),
    ];
    let scores = (b * h * t) as f64 * (s as f64 - (t as f64 - 1.0) / 2.0);
    Case {
        op: "causal_attention",
        name: format!("q {q:?}, k {kv:?}"),
        inputs,
        run: Box::new(move |x| x[0].causal_attention(&x[1], &x[2], scale)),
        forward: Box::new(move |x| reference::forward(&x[0], &x[1], &x[2], scale)),
        backward: Box::new(move |x, d_out| reference::backward(&x[0], &x[1], &x[2], scale, d_out)),
        reduction: (s * h / g).max(d),
        flops: 4.0 * scores * d as f64,
        traffic: (2 * b * t * h * d + 2 * b * s * g * d) as f64,
        check: Check { zero_inputs, mistakes, ..Check::default() },
    }
}

pub(super) fn large() -> Vec<Case> {
    vec![case([2, 40, 40], [4, 2, 32])]
}

pub(super) fn cases() -> Vec<Case> {
    let table = [
        ([1, 1, 1], [1, 1, 2]),
        ([2, 5, 5], [2, 2, 4]),
        ([1, 7, 7], [4, 2, 6]),
        ([2, 3, 3], [6, 1, 8]),
        ([1, 67, 67], [2, 1, 16]),
        ([1, 130, 130], [1, 1, 8]),
        ([1, 1, 9], [2, 1, 4]),
        ([2, 4, 70], [2, 2, 5]),
        ([1, 9, 9], [1, 1, 64]),
        ([1, 5, 5], [1, 1, 80]),
        ([1, 6, 6], [2, 2, 128]),
        ([1, 200, 200], [2, 1, 64]),
        ([0, 3, 3], [2, 1, 4]),
    ];
    let mut cases: Vec<Case> = table.into_iter().map(|(n, h)| case(n, h)).collect();
    cases.extend(HEADS.iter().map(|&d| case([1, 5, 5], [4, 2, d])));
    cases.push(case([1, 67, 67], [3, 1, 96]));
    let placements = [
        [Transposed, Contiguous, Contiguous],
        [Contiguous, Transposed, Sliced],
        [Sliced, Sliced, Transposed],
        [Repeated, Contiguous, Repeated],
    ];
    cases.extend(placements.iter().map(|p| case([2, 6, 6], [2, 2, 4]).placed(p)));
    cases
}
