//! K-target cross-entropy: K of 1 to 16, weights, ignored and repeated targets, logits up to 1e4, masks of -inf.

use patchgpt_autograd::{Result, Var};
use patchgpt_tensor::{IGNORE_INDEX, Tensor};

use super::{Case, Check, PATCHES, STEP_OF_LARGE_LOGITS, ids, inputs, mistake};
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

/// The op with these targets and weights.
fn run(n: usize, targets: Vec<i32>, weights: Vec<f64>) -> impl Fn(&[Var]) -> Result<Var> + Send + Sync + 'static {
    let k = weights.len();
    move |x| {
        let (device, dtype) = (x[0].device(), x[0].dtype().accumulator());
        let weights = Tensor::from_slice(&weights, &[k], device)?.cast(dtype)?;
        x[0].cross_entropy(&Tensor::from_slice(&targets, &[n, k], device)?, &weights)
    }
}

/// What goes wrong with targets: each name and the targets that the mistake amounts to.
pub(super) fn wrong_targets(targets: &[i32], v: usize, k: usize) -> Vec<(&'static str, Vec<i32>)> {
    let valid = |t: i32| t != IGNORE_INDEX;
    let shifted = |&t: &i32| if valid(t) { (t + 1) % v as i32 } else { t };
    let once = targets.chunks_exact(k).flat_map(|row| {
        let fresh = |i: usize| if row[..i].contains(&row[i]) { IGNORE_INDEX } else { row[i] };
        (0..k).map(fresh).collect::<Vec<_>>()
    });
    vec![
        ("targets off by one", targets.iter().map(shifted).collect()),
        ("ignored targets counted", targets.iter().map(|&t| if valid(t) { t } else { 0 }).collect()),
        ("repeated targets counted once", once.collect()),
    ]
}

pub(super) fn case(n: usize, v: usize, k: usize, weights: Weights, ignored: usize) -> Case {
    let targets = targets(n, v, k, ignored);
    let w = weights.values(k);
    let (t1, t2, w1, w2) = (targets.clone(), targets.clone(), w.clone(), w.clone());
    let wrong = wrong_targets(&targets, v, k);
    let mut mistakes: Vec<_> = wrong.into_iter().map(|(what, t)| mistake(what, run(n, t, w.clone()))).collect();
    mistakes.push(mistake("weights left out", run(n, targets.clone(), vec![1.0; k])));
    Case {
        op: "cross_entropy",
        name: format!("[{n}, {v}] with {k} targets, {weights:?} weights, every {ignored}th ignored"),
        inputs: inputs(&[&[n, v]]),
        run: Box::new(run(n, targets, w)),
        forward: Box::new(move |x| reference::forward(&x[0], &t1, &w1)),
        backward: Box::new(move |x, d| reference::backward(&x[0], &t2, &w2, d)),
        reduction: v,
        flops: 4.0 * (n * v) as f64,
        traffic: (n * v) as f64,
        // A vocabulary of one token has a loss of zero; so have rows of which every target is ignored.
        check: Check {
            mistakes,
            zero_inputs: if v == 1 || ignored == 1 { vec![0] } else { vec![] },
            ..Check::default()
        },
    }
}

/// Logits up to 1e4: only differences from the maximum may be exponentiated. The two largest of each row are close, or the softmax would
/// be a 1 among zeros.
fn large_logits(n: usize, v: usize, k: usize) -> Case {
    let mut case = case(n, v, k, Weights::Uniform, 0);
    case.inputs[0].0 = Array::random(&[n, v], 1e4, 5);
    for r in 0..n {
        case.inputs[0].0.row_mut(r)[..2].copy_from_slice(&[1e4, 1e4 - 0.5]);
    }
    case.name += ", logits up to 1e4";
    case.check.step = Some(STEP_OF_LARGE_LOGITS);
    case
}

/// Logits that are -inf wherever no target is, as a mask of the vocabulary makes them.
fn masked(n: usize, v: usize, k: usize) -> Case {
    let mut case = case(n, v, k, Weights::Reciprocal, 4);
    let targets = targets(n, v, k, 0);
    for r in 0..n {
        for (i, logit) in case.inputs[0].0.row_mut(r).iter_mut().enumerate() {
            if i % 3 == 0 && !targets[r * k..(r + 1) * k].contains(&(i as i32)) {
                *logit = f64::NEG_INFINITY;
            }
        }
    }
    case.name += ", masked with -inf";
    case.check.has_infinities = true;
    case.check.mistakes.clear();
    case
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = PATCHES.iter().map(|&k| case(5, 11, k, Weights::Uniform, 0)).collect();
    cases.extend(PATCHES.iter().map(|&k| case(5, 131, k, Weights::Reciprocal, 3)));
    cases.extend([
        case(1, 1, 1, Weights::Uniform, 0),
        case(6, 33, 4, Weights::Reciprocal, 0),
        case(6, 33, 4, Weights::Reciprocal, 3),
        case(7, 130, 3, Weights::Uniform, 1),
        case(4, 9, 1, Weights::Uniform, 2),
        case(0, 9, 2, Weights::Uniform, 0),
        large_logits(4, 50, 2),
        large_logits(3, 37, 16),
        masked(4, 21, 2),
        masked(3, 67, 16),
    ]);
    cases.extend(Placement::ALL.iter().map(|&p| case(6, 10, 3, Weights::Uniform, 4).placed(&[p])));
    cases
}

pub(super) fn large() -> Vec<Case> {
    vec![case(100, 100, 4, Weights::Reciprocal, 7)]
}
