//! Cross-entropy of a row of logits against K targets: `lse = log sum_v e^logits[v]`, `loss = sum_k w_k (lse - logits[target_k])`,
//! and `d_logits[v] = d_loss * (n e^(logits[v] - lse) - sum of w_k with target_k = v)`, n the weight of the valid targets.
//! logits [N, V], targets and weights [N, K] and [K]; any number of leading dimensions.
//!
//! A row is read once: in chunks that stay in the first-level cache, each for its maximum and then for its sum, which is
//! rescaled when the maximum rises. Blocks of rows are tasks. Some 20 FLOPs an element; reads V a row, writes V backward.

use super::access::{Access, View, ViewMut};
use super::isa::Isa;
use super::math::{self, Float};
use super::parallel::{Pool, blocks};
use super::rows::{Reader, Rows, RowsMut, Value};
use super::vectorized::vectorized;
use super::with_float;
use crate::backend::{Destination, IGNORE_INDEX};
use crate::{Element, Result, Tensor};
use std::ops::Range;

/// Logits that are looked at together: 16 KiB of f32.
const CHUNK: usize = 4096;
/// What an exponential costs, in elements touched.
const EXP_COST: usize = 4;

pub(super) fn cross_entropy(
    pool: &Pool,
    losses: &Tensor,
    lse: &Tensor,
    logits: &Tensor,
    targets: &Tensor,
    weights: &Tensor,
) -> Result<()> {
    with_float!("cross_entropy", logits.dtype(), F => {
        let access = Access::converting(pool, "cross_entropy", &[logits, targets, weights], &[losses, lse])?;
        let (losses, lse) = (access.output::<F>(losses)?, access.output::<F>(lse)?);
        let (logits, targets) = (Rows::<F>::of(&access, logits)?, access.view::<i32>(targets)?.slice());
        let weights = access.view::<F>(weights)?.slice();
        for_row_blocks(pool, &logits, |rows| {
            let mut reader = logits.reader();
            for row in rows {
                let log_sum = log_sum_exp(&mut reader, row, logits.width());
                let mut loss = F::ZERO;
                for (target, weight) in valid(targets, weights, row) {
                    loss += weight * (log_sum - logits.value(row, target));
                }
                // SAFETY: the row belongs to this task.
                unsafe {
                    set_per_row(&losses, row, loss);
                    set_per_row(&lse, row, log_sum);
                }
            }
        });
        Ok(())
    })
}

#[allow(clippy::too_many_arguments)]
pub(super) fn cross_entropy_backward(
    pool: &Pool,
    d_logits: Destination,
    d_losses: &Tensor,
    logits: &Tensor,
    lse: &Tensor,
    targets: &Tensor,
    weights: &Tensor,
) -> Result<()> {
    with_float!("cross_entropy_backward", logits.dtype(), F => {
        let inputs = [d_losses, logits, lse, targets, weights];
        let access = Access::converting(pool, "cross_entropy_backward", &inputs, &[d_logits.tensor])?;
        let accumulate = d_logits.accumulate;
        let (d_logits, logits) = (RowsMut::of(&access, d_logits)?, Rows::<F>::of(&access, logits)?);
        let (d_losses, lse) = (access.view::<F>(d_losses)?, access.view::<F>(lse)?);
        let targets = access.view::<i32>(targets)?.slice();
        let weights = access.view::<F>(weights)?.slice();
        for_row_blocks(pool, &logits, |rows| {
            let (mut reader, mut writer) = logits.in_place(&d_logits);
            for row in rows {
                let valid = valid(targets, weights, row);
                let (d_loss, lse) = (per_row(&d_losses, row), per_row(&lse, row));
                let mut weight = F::ZERO;
                valid.clone().for_each(|(_, w)| weight += w);
                let scale = valid.clone().next().map(|_| weight * d_loss);
                for chunk in chunks(logits.width()) {
                    let x = reader.part(row, chunk.clone());
                    let make = |d: &mut [F]| {
                        gradient_part(accumulate, d, x, scale, lse);
                        for (target, weight) in valid.clone().filter(|(target, _)| chunk.contains(target)) {
                            d[target - chunk.start] -= d_loss * weight;
                        }
                    };
                    // SAFETY: the row belongs to this task, and in place the chunk was copied.
                    unsafe { writer.write_part(row, chunk.clone(), make) };
                }
            }
        });
        Ok(())
    })
}

/// Calls `task` with ranges of rows that cover all of them.
fn for_row_blocks<F: Value>(pool: &Pool, logits: &Rows<F>, task: impl Fn(Range<usize>) + Sync) {
    let rows = logits.count();
    let (count, per_block) = blocks(rows, EXP_COST * logits.width() + 1);
    pool.run(count, |block| task(block * per_block..rows.min((block + 1) * per_block)));
}

/// The chunks of a row of so many logits.
fn chunks(width: usize) -> impl Iterator<Item = Range<usize>> {
    (0..width).step_by(CHUNK).map(move |start| start..width.min(start + CHUNK))
}

/// The valid targets of a row with their weights.
#[inline(always)]
fn valid<'a, F: Float>(
    targets: &'a [i32],
    weights: &'a [F],
    row: usize,
) -> impl Iterator<Item = (usize, F)> + Clone + 'a {
    let k = weights.len();
    let scored = |(&target, &weight): (&i32, &F)| (target != IGNORE_INDEX).then_some((target as usize, weight));
    targets[row * k..(row + 1) * k].iter().zip(weights).filter_map(scored)
}

/// Element number `row` of a view with one element a row.
#[inline(always)]
fn per_row<F: Element>(view: &View<F>, row: usize) -> F {
    // SAFETY: the offset is that of an element of the view.
    unsafe { *view.at(view.layout().offset_of(row)) }
}

/// Writes element number `row` of a view with one element a row.
///
/// # Safety
/// No other task reads or writes that element.
#[inline(always)]
unsafe fn set_per_row<F: Element>(view: &ViewMut<F>, row: usize, value: F) {
    // SAFETY: the offset is that of an element of the view; exclusive by the caller's promise.
    unsafe { *view.at(view.layout().offset_of(row)) = value };
}

/// `log sum e^x` of a row; minus infinity if every x is, NaN if any is.
fn log_sum_exp<F: Value>(logits: &mut Reader<F>, row: usize, width: usize) -> F {
    let (mut top, mut total) = (F::NEG_INFINITY, F::ZERO);
    for chunk in chunks(width) {
        (top, total) = add_part(logits.part(row, chunk), top, total);
    }
    pivot(top) + total.ln()
}

vectorized! {
    /// The greatest logit so far and the sum of exponentials around it, with those of another chunk.
    fn add_part<'a, F>(isa: I, x: &'a [F], top: F, total: F) -> (F, F) {
        let raised = greater(greatest(x), top);
        (raised, total * (top - pivot(raised)).exp_flushed(isa) + sum_exp(isa, x, pivot(raised)))
    }
}

vectorized! {
    /// `d (+)= scale e^(x - lse)`; zeros without a scale, which a row has none of that is not scored.
    fn gradient_part<'a, F>(isa: I, accumulate: bool, d: &'a mut [F], x: &'a [F], scale: Option<F>, lse: F) -> () {
        match (scale, accumulate) {
            (Some(scale), true) => d.iter_mut().zip(x).for_each(|(d, x)| *d += scale * (*x - lse).exp_flushed(isa)),
            (Some(scale), false) => d.iter_mut().zip(x).for_each(|(d, x)| *d = scale * (*x - lse).exp_flushed(isa)),
            (None, true) => {}
            (None, false) => d.fill(F::ZERO),
        }
    }
}

/// What is subtracted before the exponential: the greatest so far; 0 where there is nothing but minus infinity, whose
/// exponential is 0 as it is.
#[inline(always)]
fn pivot<F: Float>(top: F) -> F {
    if top == F::NEG_INFINITY { F::ZERO } else { top }
}

/// The greater of two; the second if the first is NaN, which the sum of exponentials meets.
#[inline(always)]
fn greater<F: Float>(a: F, b: F) -> F {
    if a > b { a } else { b }
}

/// The greatest of a slice, past any NaN.
#[inline(always)]
fn greatest<F: Float>(x: &[F]) -> F {
    let mut partial = [F::NEG_INFINITY; math::ACCUMULATORS];
    let (chunks, rest) = x.as_chunks::<{ math::ACCUMULATORS }>();
    for chunk in chunks {
        for i in 0..math::ACCUMULATORS {
            partial[i] = greater(chunk[i], partial[i]);
        }
    }
    partial.iter().chain(rest).fold(F::NEG_INFINITY, |top, x| greater(*x, top))
}

/// `sum e^(x - pivot)`, in [`math::ACCUMULATORS`] partial sums.
#[inline(always)]
fn sum_exp<F: Float, I: Isa>(isa: I, x: &[F], pivot: F) -> F {
    let mut partial = [F::ZERO; math::ACCUMULATORS];
    let (chunks, rest) = x.as_chunks::<{ math::ACCUMULATORS }>();
    for chunk in chunks {
        for i in 0..math::ACCUMULATORS {
            partial[i] += (chunk[i] - pivot).exp_flushed(isa);
        }
    }
    for (sum, x) in partial.iter_mut().zip(rest) {
        *sum += (*x - pivot).exp_flushed(isa);
    }
    math::sum(isa, &partial)
}

#[cfg(test)]
#[path = "cross_entropy_tests.rs"]
mod tests;
