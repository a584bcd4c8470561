//! The head with its loss: `scale * sum of losses of x W^T`, with K of 1 to 16, weights, ignored and repeated targets.

use patchgpt_autograd::{Result, Var};
use patchgpt_tensor::Tensor;

use super::cross_entropy::{Weights, targets, wrong_targets};
use super::{Case, Check, PATCHES, inputs, mistake};
use crate::array::Placement;
use crate::reference::linear_cross_entropy as reference;

const SCALE: f64 = 0.125;

/// The op with these targets, weights and scale.
fn run(
    n: usize,
    targets: Vec<i32>,
    weights: Vec<f64>,
    scale: f64,
) -> impl Fn(&[Var]) -> Result<Var> + Send + Sync + 'static {
    let k = weights.len();
    move |x| {
        let (device, dtype) = (x[0].device(), x[0].dtype().accumulator());
        let weights = Tensor::from_slice(&weights, &[k], device)?.cast(dtype)?;
        let scale = Tensor::scalar(scale, dtype, device)?;
        x[0].linear_cross_entropy(&x[1], &Tensor::from_slice(&targets, &[n, k], device)?, &weights, &scale)
    }
}

pub(super) fn case(n: usize, c: usize, v: usize, k: usize) -> Case {
    let targets = targets(n, v, k, 5);
    let w = Weights::Reciprocal.values(k);
    let (t1, t2, w1, w2) = (targets.clone(), targets.clone(), w.clone(), w.clone());
    let wrong = wrong_targets(&targets, v, k);
    let mut mistakes: Vec<_> = wrong.into_iter().map(|(what, t)| mistake(what, run(n, t, w.clone(), SCALE))).collect();
    mistakes.push(mistake("weights left out", run(n, targets.clone(), vec![1.0; k], SCALE)));
    mistakes.push(mistake("scale left out", run(n, targets.clone(), w.clone(), 1.0)));
    Case {
        op: "linear_cross_entropy",
        name: format!("x [{n}, {c}], weight [{v}, {c}], {k} targets"),
        inputs: inputs(&[&[n, c], &[v, c]]),
        run: Box::new(run(n, targets, w, SCALE)),
        forward: Box::new(move |x| reference::forward(&x[0], &x[1], &t1, &w1, SCALE)),
        backward: Box::new(move |x, d| reference::backward(&x[0], &x[1], &t2, &w2, SCALE, d)),
        reduction: n.max(c).max(v),
        flops: 2.0 * (n * c * v) as f64,
        traffic: (n * c + v * c + 2 * n * v) as f64,
        // A vocabulary of one token has a loss of zero, and no rows have no gradient.
        check: Check { mistakes, zero_inputs: if v == 1 || n == 0 { vec![0, 1] } else { vec![] }, ..Check::default() },
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = PATCHES.iter().map(|&k| case(5, 7, 11, k)).collect();
    cases.extend([case(1, 1, 1, 1), case(70, 8, 33, 2), case(3, 16, 130, 3), case(0, 3, 4, 2), case(2, 5, 67, 16)]);
    for p in [
        [Placement::Transposed, Placement::Contiguous],
        [Placement::Contiguous, Placement::Transposed],
        [Placement::Sliced, Placement::Sliced],
        [Placement::Repeated, Placement::Contiguous],
    ] {
        cases.push(case(6, 5, 9, 2).placed(&p));
    }
    cases
}

pub(super) fn large() -> Vec<Case> {
    vec![case(100, 100, 60, 4)]
}
