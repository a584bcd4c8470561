//! The forward pass: one task for each block of queries of a head, with a running maximum and sum for each query.

use super::{KEYS, QUERIES, Sizes, matrix, output_row, tile};
use crate::cpu::gemm::{MatRef, gemm_single};
use crate::cpu::math::{Float, max, sum};
use crate::cpu::memory::{Access, View};
use crate::cpu::parallel::Pool;
use crate::cpu::vectorized::vectorized;
use crate::cpu::with_float;
use crate::{Element, Result, Tensor};

vectorized! {
    /// One row of scores becomes probabilities relative to the running maximum; gives the new maximum, the factor for what was
    /// summed before, and the row's sum. Scores from `visible` on are masked.
    fn online_row<'a, F>(isa: I, row: &'a mut [F], visible: usize, before: F) -> (F, F, F) {
        let (seen, hidden) = row.split_at_mut(visible);
        let greatest = F::max(before, max(isa, seen));
        seen.iter_mut().for_each(|s| *s = (*s - greatest).exp(isa));
        hidden.fill(F::ZERO);
        (greatest, (before - greatest).exp(isa), sum(isa, seen))
    }
}

vectorized! {
    fn scale_row<'a, F>(isa: I, x: &'a mut [F], factor: F) -> () {
        x.iter_mut().for_each(|x| *x *= factor)
    }
}

/// What a task works with.
struct Scratch<F> {
    scores: Vec<F>,
    out: Vec<F>,
    maximum: Vec<F>,
    sum: Vec<F>,
}

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
    let sizes = Sizes::of(q, k);
    if out.is_empty() {
        return Ok(());
    }
    with_float!("causal_attention", q.dtype(), F => {
        let access = Access::new("causal_attention", &[q, k, v], &[out, lse])?;
        let (o, l) = (access.view_mut::<F>(out)?, access.view_mut::<F>(lse)?);
        let inputs = [access.view::<F>(q)?, access.view::<F>(k)?, access.view::<F>(v)?];
        let blocks = sizes.query_blocks();
        pool.run(blocks * sizes.batch * sizes.heads, |task| {
            // The last blocks of queries see the most keys and go first.
            let (block, head) = (blocks - 1 - task / (sizes.batch * sizes.heads), task % (sizes.batch * sizes.heads));
            let (batch, head) = (head / sizes.heads, head % sizes.heads);
            let range = sizes.query_block(block);
            let scratch = attend(sizes, &inputs, batch, head, &range, F::from_f64(scale));
            let start = (batch * sizes.heads + head) * sizes.queries;
            // SAFETY: a task owns its queries of its head.
            let lse = unsafe { l.slice(start + range.start..start + range.end) };
            for (i, t) in range.enumerate() {
                // SAFETY: as above.
                let row = unsafe { output_row(&o, batch, t, head) };
                row.copy_from_slice(&scratch.out[i * sizes.width..(i + 1) * sizes.width]);
                scale_row(row, F::ONE / scratch.sum[i]);
                lse[i] = scratch.maximum[i] + scratch.sum[i].ln();
            }
        });
        Ok(())
    })
}

/// The unnormalised output of a block of queries, with maxima and sums.
fn attend<F: Float + Element>(
    sizes: Sizes,
    [q, k, v]: &[View<F>; 3],
    batch: usize,
    head: usize,
    range: &std::ops::Range<usize>,
    scale: F,
) -> Scratch<F> {
    let (rows, width) = (range.len(), sizes.width);
    let mut scratch = Scratch {
        scores: vec![F::ZERO; QUERIES.min(rows) * KEYS],
        out: vec![F::ZERO; rows * width],
        maximum: vec![F::NEG_INFINITY; rows],
        sum: vec![F::ZERO; rows],
    };
    let queries = matrix(q, batch, head, range);
    let group = head / sizes.per_group();
    let end = sizes.visible(range.end - 1);
    for first in (0..end).step_by(KEYS) {
        let keys = first..(first + KEYS).min(end);
        let cols = keys.len();
        let scores = tile(&mut scratch.scores, rows, cols);
        // SAFETY: the tile is this task's scratch, the factors lie inside their locked views.
        unsafe { gemm_single(scores, queries, matrix(k, batch, group, &keys).t(), scale, false) };
        for (i, t) in range.clone().enumerate() {
            let visible = sizes.visible(t).saturating_sub(first).min(cols);
            let row = &mut scratch.scores[i * cols..(i + 1) * cols];
            if visible == 0 {
                row.fill(F::ZERO);
                continue;
            }
            let (maximum, factor, sum) = online_row(row, visible, scratch.maximum[i]);
            if factor != F::ONE {
                scale_row(&mut scratch.out[i * width..(i + 1) * width], factor);
            }
            scratch.sum[i] = scratch.sum[i] * factor + sum;
            scratch.maximum[i] = maximum;
        }
        let p = MatRef::contiguous(scratch.scores.as_ptr(), rows, cols);
        let out = tile(&mut scratch.out, rows, width);
        // SAFETY: as above.
        unsafe { gemm_single(out, p, matrix(v, batch, group, &keys), F::ONE, true) };
    }
    scratch
}
