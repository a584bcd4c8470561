//! The forward pass: one task for each block of queries of a head, with a running maximum and sum for each query. For a block of
//! keys and a panel of queries: scores `s^T = k q^T`, `p = e^(s - max)`, `out = out e^(max before - max) + p v`; at the end `out / sum` and
//! `lse = max + ln sum`.

use std::marker::PhantomData;
use std::ops::Range;

use super::factors::Head;
use super::output::Output;
use super::product::{Left, Start, product};
use super::{KEYS, Sizes, dispatch_of, few_queries, in_pairs, lse_offset, mask, panel, split_scale};
use crate::cpu::access::{Access, View, ViewMut};
use crate::cpu::buffer::{Buffer, OWN, in_parts};
use crate::cpu::cells::{Cell, Pairs, Wide};
use crate::cpu::isa::{Isa, Kernel, dispatch};
use crate::cpu::math::Float;
use crate::cpu::parallel::Pool;
use crate::cpu::stored::{Stored, with_stored};
use crate::cpu::with_float;
use crate::{Destination, Element, Result, Tensor};

/// Queries of a block: a multiple of every panel, and enough that copies of keys and values do not count.
const QUERIES: usize = 256;

/// `out = softmax(scale * q k^T + mask) v` and the log-sum-exp of the scores.
pub(in crate::cpu) fn causal_attention(
    pool: &Pool,
    out: &Tensor,
    lse: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
) -> Result<()> {
    if lse.is_empty() {
        return Ok(());
    }
    if in_pairs(q, scale) {
        return run::<f32, Pairs>(pool, out, lse, [q, k, v], scale as f32);
    }
    with_float!("causal_attention", q.dtype(), F => {
        with_stored!(q.dtype(), F, S => run::<F, Wide<S>>(pool, out, lse, [q, k, v], F::from_f64(scale)))
    })
}

fn run<F: Float + Element, C: Cell<F, Stored: Element>>(
    pool: &Pool,
    out: &Tensor,
    lse: &Tensor,
    [q, k, v]: [&Tensor; 3],
    scale: F,
) -> Result<()> {
    let sizes = Sizes::of(q, k);
    let access = Access::new("causal_attention", &[q, k, v], &[out, lse])?;
    let forward = Forward::<F, C::Stored> {
        sizes,
        q: access.view(q)?,
        k: access.view(k)?,
        v: access.view(v)?,
        out: Output::of(&access, Destination::write(out))?,
        lse: access.output::<F>(lse)?,
        scale,
    };
    let heads = sizes.batch * sizes.heads;
    let few = sizes.queries <= few_queries::MOST;
    let blocks = if few { 1 } else { sizes.queries.div_ceil(QUERIES) };
    let task = |task: usize| {
        // The last blocks of queries see the most keys and go first.
        let (queries, head) = (sizes.query_block(blocks - 1 - task / heads, QUERIES), task % heads);
        let (batch, head) = (head / sizes.heads, head % sizes.heads);
        match few {
            true => dispatch(few_queries::Rows { forward: &forward, batch, head }),
            false => {
                dispatch_of::<C, _>(Block { forward: &forward, batch, head, queries, cells: PhantomData::<C> });
            }
        }
    };
    match sizes.is_small() {
        true => (0..blocks * heads).for_each(task),
        false => pool.run(blocks * heads, task),
    }
    Ok(())
}

/// What the tasks share.
pub(super) struct Forward<'a, F, S> {
    pub(super) sizes: Sizes,
    pub(super) q: View<'a, S>,
    pub(super) k: View<'a, S>,
    pub(super) v: View<'a, S>,
    pub(super) out: Output<'a, F>,
    pub(super) lse: ViewMut<'a, F>,
    pub(super) scale: F,
}

impl<'a, F: Float + Element, S: Stored<F> + Element> Forward<'a, F, S> {
    /// Queries, keys and values of a head.
    pub(super) fn head(&self, batch: usize, head: usize) -> [Head<'a, S>; 3] {
        let group = head / self.sizes.per_group();
        [Head::new(&self.q, batch, head), Head::new(&self.k, batch, group), Head::new(&self.v, batch, group)]
    }

    /// Writes the log-sum-exps of a head, position by position from `start` on.
    ///
    /// # Safety
    /// These queries of that head belong to the caller's task.
    #[inline(always)]
    pub(super) unsafe fn set_lse(&self, [batch, head, start]: [usize; 3], values: impl ExactSizeIterator<Item = F>) {
        let first = lse_offset(self.lse.layout(), batch, head);
        assert!(start + values.len() <= self.sizes.queries);
        for (t, value) in (start..).zip(values) {
            // SAFETY: an element of the view, exclusive by the caller's promise.
            unsafe { *self.lse.at(first + t) = value };
        }
    }
}

/// A task: a block of queries of a head.
struct Block<'a, F: Float, C: Cell<F>> {
    forward: &'a Forward<'a, F, C::Stored>,
    batch: usize,
    head: usize,
    queries: Range<usize>,
    cells: PhantomData<C>,
}

impl<F: Float + Element, C: Cell<F, Stored: Element>> Kernel for Block<'_, F, C> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match const { panel::<F, I>() } {
            4 => self.attend::<I, 4>(isa),
            8 => self.attend::<I, 8>(isa),
            16 => self.attend::<I, 16>(isa),
            _ => self.attend::<I, 32>(isa),
        }
    }
}

/// Running statistics of a panel of queries.
#[derive(Clone, Copy)]
struct Statistics<F, const N: usize> {
    maximum: [F; N],
    sum: [F; N],
}

impl<F: Float + Element, C: Cell<F, Stored: Element>> Block<'_, F, C> {
    #[inline(always)]
    fn attend<I: Isa, const N: usize>(self, isa: I) {
        let Block { forward, batch, head, queries, .. } = self;
        let sizes = &forward.sizes;
        let [q, k, v] = forward.head(batch, head);
        let (cells, pitch) = (sizes.width.div_ceil(C::VALUES), sizes.width.next_multiple_of(N));
        let panels = queries.len().div_ceil(N);
        let (in_q, in_scores) = split_scale::<F, C>(forward.scale);
        let lengths = [panels * N * cells, KEYS * cells, KEYS * pitch, KEYS * N, panels * N * pitch];
        let mut buffer = Buffer::<F>::take(&OWN, in_parts::<F, _>(lengths));
        let [q_t, k_rows, v_rows, scores, out] = buffer.parts(lengths);
        q.transpose::<F, C, N>(queries.clone(), in_q, q_t);
        let mut statistics = [Statistics { maximum: [F::NEG_INFINITY; N], sum: [F::ZERO; N] }; QUERIES / 4];

        let end = sizes.visible(queries.end - 1);
        for first in (0..end).step_by(KEYS) {
            let keys = first..(first + KEYS).min(end);
            k.copy_rows::<F, C>(keys.clone(), k_rows, cells);
            v.join_rows::<F, C, I>(isa, keys, v_rows, pitch);
            for panel in 0..panels {
                let start = queries.start + panel * N;
                let seen = sizes.seen(&(start..start + N), first);
                if seen == 0 {
                    continue;
                }
                let scores = &mut scores[..seen * N];
                let left = Left { values: k_rows, row: cells, step: 1 };
                let q_t = &q_t[panel * N * cells..(panel + 1) * N * cells];
                product::<F, C, I, N>(isa, [seen, cells, N], Start::Zeros, left, (q_t, N), (scores, N));
                mask::<F, N>((scores, N), seen, sizes, first, start);
                let factor = online::<F, C, I, N>(isa, in_scores, scores, &mut statistics[panel]);
                let out = &mut out[panel * N * pitch..(panel + 1) * N * pitch];
                // Every query sees the first keys.
                let from = if first == 0 { Start::Zeros } else { Start::Sums };
                if first > 0 {
                    for (row, factor) in out.chunks_exact_mut(pitch.max(1)).zip(factor) {
                        // Most maxima stand after a few blocks.
                        if factor != F::ONE {
                            row.iter_mut().for_each(|x| *x *= factor);
                        }
                    }
                }
                let (left, depth) = (Left { values: scores, row: 1, step: N }, seen.div_ceil(C::VALUES));
                product::<F, C, I, N>(isa, [N, depth, pitch], from, left, (v_rows, pitch), (out, pitch));
            }
        }
        for (i, t) in queries.clone().enumerate() {
            let share = F::ONE / statistics[i / N].sum[i % N];
            forward.out.ask([batch, t, head]);
            // SAFETY: the block's queries of this head belong to this task.
            unsafe { forward.out.put(isa, [batch, t, head], &out[i * pitch..][..sizes.width], share) };
        }
        let lse = (0..queries.len()).map(|i| statistics[i / N].maximum[i % N] + statistics[i / N].sum[i % N].ln());
        // SAFETY: as above.
        unsafe { forward.set_lse([batch, head, queries.start], lse) };
        buffer.give_back(&OWN);
    }
}

/// Scores, times `scale`, become e^(score - maximum), in cells along the keys, and statistics are brought up to date; gives the factors for what was
/// summed before.
#[inline(always)]
fn online<F: Float, C: Cell<F>, I: Isa, const N: usize>(
    isa: I,
    scale: F,
    scores: &mut [F],
    statistics: &mut Statistics<F, N>,
) -> [F; N] {
    let scores = scores.as_chunks_mut::<N>().0;
    let mut maximum = statistics.maximum;
    for row in scores.iter() {
        for i in 0..N {
            let score = row[i] * scale;
            // A NaN is passed over here and met in the sum.
            maximum[i] = if score > maximum[i] { score } else { maximum[i] };
        }
    }
    let mut factor = [F::ONE; N];
    let mut pivot = [F::ZERO; N];
    for i in 0..N {
        // Scores of minus infinity alone leave no maximum to subtract: their exponentials are 0 as they are.
        pivot[i] = if maximum[i] == F::NEG_INFINITY { F::ZERO } else { maximum[i] };
        factor[i] = (statistics.maximum[i] - pivot[i]).exp_flushed(isa);
    }
    let mut sum = [F::ZERO; N];
    for at in (0..scores.len()).step_by(C::VALUES) {
        let first = exponentials(isa, scale, &scores[at], &pivot, &mut sum);
        let second = match C::VALUES > 1 && at + 1 < scores.len() {
            true => exponentials(isa, scale, &scores[at + 1], &pivot, &mut sum),
            false => [F::ZERO; N],
        };
        C::round_join(isa, &first, &second, &mut scores[at / C::VALUES]);
    }
    for i in 0..N {
        statistics.sum[i] = F::fma(isa, statistics.sum[i], factor[i], sum[i]);
    }
    statistics.maximum = maximum;
    factor
}

/// `e^(scale * score - pivot)` of a row, which the sums gain.
#[inline(always)]
fn exponentials<F: Float, I: Isa, const N: usize>(
    isa: I,
    scale: F,
    scores: &[F; N],
    pivot: &[F; N],
    sum: &mut [F; N],
) -> [F; N] {
    let mut p = [F::ZERO; N];
    for i in 0..N {
        p[i] = F::fma(isa, scores[i], scale, -pivot[i]).exp_flushed(isa);
        sum[i] += p[i];
    }
    p
}
