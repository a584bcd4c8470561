//! K-target cross-entropy: K of 1 to 16, weights, ignored and repeated targets, logits up to 1e4.

use patchgpt_tensor::{IGNORE_INDEX, Tensor};

use super::{Case, ids, inputs};
use crate::array::{Array, Placement};
use crate::reference::cross_entropy as reference;

/// Weights of the K targets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Weights {
    /// All 1.
    Uniform,
    /// 1, 1/2, 1/3, ...
    Reciprocal,
}

impl Weights {
    pub(super) fn values(self, k: usize) -> Vec<f64> {
        (0..k).map(|i| if let Weights::Uniform = self { 1.0 } else { 1.0 / (i + 1) as f64 }).collect()
    }
}

/// Targets [N, K]: each `ignored`-th one is ignored (0: none), and the first two of every third row are the same.
pub(super) fn targets(n: usize, v: usize, k: usize, ignored: usize) -> Vec<i32> {
    let mut targets = ids(n * k, v, (n * 31 + k) as u64);
    for row in (0..n).step_by(3).filter(|_| k >= 2) {
        targets[row * k + 1] = targets[row * k];
    }
    if ignored > 0 {
        targets.iter_mut().step_by(ignored).for_each(|t| *t = IGNORE_INDEX);
    }
    targets
}

pub(super) fn case(n: usize, v: usize, k: usize, weights: Weights, ignored: usize) -> Case {
    let targets = targets(n, v, k, ignored);
    let w = weights.values(k);
    let (t1, t2, w1, w2) = (targets.clone(), targets.clone(), w.clone(), w.clone());
    Case {
        op: "cross_entropy",
        name: format!("[{n}, {v}] with {k} targets, {weights:?} weights, every {ignored}th ignored"),
        inputs: inputs(&[&[n, v]]),
        run: Box::new(move |x| {
            let (device, dtype) = (x[0].device(), x[0].dtype().accumulator());
            let weights = Tensor::from_slice(&w, &[k], device)?.cast(dtype)?;
            x[0].cross_entropy(&Tensor::from_slice(&targets, &[n, k], device)?, &weights)
        }),
        forward: Box::new(move |x| reference::forward(&x[0], &t1, &w1)),
        backward: Box::new(move |x, d| reference::backward(&x[0], &t2, &w2, d)),
        reduction: v,
        flops: 4.0 * (n * v) as f64,
        traffic: (n * v) as f64,
    }
}

/// Logits up to 1e4: only differences from the maximum may be exponentiated.
fn large(n: usize, v: usize) -> Case {
    let mut case = case(n, v, 2, Weights::Uniform, 0);
    case.inputs[0].0 = Array::random(&[n, v], 1e4, 5);
    case.name += ", logits up to 1e4";
    case
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = [1, 2, 3, 4, 8, 16].iter().map(|&k| case(5, 11, k, Weights::Uniform, 0)).collect();
    cases.extend([
        case(1, 1, 1, Weights::Uniform, 0),
        case(6, 33, 4, Weights::Reciprocal, 0),
        case(6, 33, 4, Weights::Reciprocal, 3),
        case(7, 130, 3, Weights::Uniform, 1),
        case(4, 9, 1, Weights::Uniform, 2),
        case(0, 9, 2, Weights::Uniform, 0),
        large(4, 50),
    ]);
    cases.extend(Placement::ALL.iter().map(|&p| case(6, 10, 3, Weights::Uniform, 4).placed(&[p])));
    cases
}
