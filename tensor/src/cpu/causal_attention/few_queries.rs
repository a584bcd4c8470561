//! The forward pass for a few queries against many keys, as when a text is continued token by token: each key and value is read once,
//! row by row, without blocks or transposes. Bound by memory: 2 D elements for 4 D FLOPs a score.

use super::factors::Head;
use super::forward::Forward;
use crate::Element;
use crate::cpu::isa::{Isa, Kernel};
use crate::cpu::math::{self, Float};
use crate::cpu::stored::Stored;

/// From more queries on, blocks are faster.
pub(super) const MOST: usize = 4;
/// Keys whose scores are held together.
const KEYS: usize = 256;
/// Keys that are read side by side.
const TOGETHER: usize = 4;
/// Partial sums of a score.
const LANES: usize = 8;

/// A task: all queries of a head.
pub(super) struct Rows<'a, F, S> {
    pub(super) forward: &'a Forward<'a, F, S>,
    pub(super) batch: usize,
    pub(super) head: usize,
}

impl<F: Float + Element, S: Stored<F> + Element> Kernel for Rows<'_, F, S> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Rows { forward, batch, head } = self;
        let [q, k, v] = forward.head(batch, head);
        for t in 0..forward.sizes.queries {
            let scaled: Vec<F> = q.row(t).iter().map(|x| x.wide() * forward.scale).collect();
            let mut out = vec![F::ZERO; q.width];
            let (lse, share) = attend(isa, &scaled, &k, &v, forward.sizes.visible(t), &mut out);
            // SAFETY: the head's queries belong to this task.
            unsafe {
                forward.out.put(isa, [batch, t, head], &out, share);
                forward.set_lse([batch, head, t], std::iter::once(lse));
            }
        }
    }
}

/// `out = softmax(q k^T) v` over the first `visible` keys but for a factor; gives the log-sum-exp and this factor.
#[inline(always)]
fn attend<F: Float, S: Stored<F> + Element, I: Isa>(
    isa: I,
    q: &[F],
    k: &Head<S>,
    v: &Head<S>,
    visible: usize,
    out: &mut [F],
) -> (F, F) {
    let mut scores = [F::ZERO; KEYS];
    let (mut maximum, mut sum) = (F::NEG_INFINITY, F::ZERO);
    for first in (0..visible).step_by(KEYS) {
        let scores = &mut scores[..KEYS.min(visible - first)];
        for (j, scores) in scores.chunks_mut(TOGETHER).enumerate() {
            // The last key stands in for those that are not there.
            let last = first + j * TOGETHER + scores.len() - 1;
            let rows = std::array::from_fn(|i| k.row((first + j * TOGETHER + i).min(last)));
            scores.copy_from_slice(&dots(isa, q, rows)[..scores.len()]);
        }
        let raised = maximum.max(math::max(isa, scores));
        let pivot = if raised == F::NEG_INFINITY { F::ZERO } else { raised };
        let factor = (maximum - pivot).exp_flushed(isa);
        scores.iter_mut().for_each(|score| *score = (*score - pivot).exp_flushed(isa));
        out.iter_mut().for_each(|x| *x *= factor);
        let (fours, rest) = scores.as_chunks::<TOGETHER>();
        for (j, p) in fours.iter().enumerate() {
            let [a, b, c, d] = std::array::from_fn(|i| &v.row(first + j * TOGETHER + i)[..out.len()]);
            for (i, x) in out.iter_mut().enumerate() {
                let pair = F::fma(isa, p[1], b[i].wide(), F::fma(isa, p[0], a[i].wide(), *x));
                *x = F::fma(isa, p[3], d[i].wide(), F::fma(isa, p[2], c[i].wide(), pair));
            }
        }
        for (j, p) in rest.iter().enumerate() {
            let row = v.row(first + fours.len() * TOGETHER + j);
            out.iter_mut().zip(row).for_each(|(x, v)| *x = F::fma(isa, *p, v.wide(), *x));
        }
        sum = F::fma(isa, sum, factor, math::sum(isa, scores));
        maximum = raised;
    }
    (maximum + sum.ln(), F::ONE / sum)
}

/// The products of a query with four keys, each in [`LANES`] partial sums.
#[inline(always)]
fn dots<F: Float, S: Stored<F>, I: Isa>(isa: I, q: &[F], rows: [&[S]; TOGETHER]) -> [F; TOGETHER] {
    let mut partial = [[F::ZERO; LANES]; TOGETHER];
    let (q_chunks, q_rest) = q.as_chunks::<LANES>();
    for (chunk, q) in q_chunks.iter().enumerate() {
        for (partial, row) in partial.iter_mut().zip(rows) {
            let k = &row[chunk * LANES..][..LANES];
            for i in 0..LANES {
                partial[i] = F::fma(isa, q[i], k[i].wide(), partial[i]);
            }
        }
    }
    for (partial, row) in partial.iter_mut().zip(rows) {
        for ((sum, q), k) in partial.iter_mut().zip(q_rest).zip(&row[q_chunks.len() * LANES..]) {
            *sum = F::fma(isa, *q, k.wide(), *sum);
        }
    }
    partial.map(|p| ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7])))
}
