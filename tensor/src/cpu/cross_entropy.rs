//! Cross-entropy of a row of logits against K targets: `lse = log sum_v e^logits[v]`, `loss = sum_k w_k (lse - logits[target_k])`,
//! and `d_logits[v] = d_loss * (n e^(logits[v] - lse) - sum of w_k with target_k = v)`, n the weight of the valid targets.
//! logits [N, V], targets and weights [N, K] and [K]; any number of leading dimensions.
//!
//! A row is read once: in chunks that stay in the first-level cache, each for its maximum and then for its sum, which is
//! rescaled when the maximum rises. Blocks of rows are tasks. Some 20 FLOPs an element; reads V a row, writes V backward.

use super::access::{Access, View, ViewMut};
use super::isa::{Isa, Kernel, dispatch};
use super::math::{self, Float};
use super::parallel::{Pool, blocks};
use super::with_float;
use crate::backend::{Destination, IGNORE_INDEX};
use crate::{Element, Result, Tensor};

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
        let (logits, targets) = (access.view::<F>(logits)?, access.view::<i32>(targets)?.slice());
        let weights = access.view::<F>(weights)?.slice();
        for_row_blocks(pool, &logits, |rows| {
            dispatch(Losses { rows, logits, targets, weights, losses, lse });
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
        let (accumulate, d_logits) = (d_logits.accumulate, access.destination::<F>(d_logits)?);
        let (d_losses, lse) = (access.view::<F>(d_losses)?, access.view::<F>(lse)?);
        let (logits, targets) = (access.view::<F>(logits)?, access.view::<i32>(targets)?.slice());
        let weights = access.view::<F>(weights)?.slice();
        for_row_blocks(pool, &logits, |rows| {
            dispatch(Gradient { rows, d_logits, accumulate, d_losses, logits, lse, targets, weights });
        });
        Ok(())
    })
}

/// Calls `task` with ranges of rows that cover all of them.
fn for_row_blocks<F: Element>(pool: &Pool, logits: &View<F>, task: impl Fn(std::ops::Range<usize>) + Sync) {
    let rows = logits.rows();
    let width = logits.layout().shape().last().copied().unwrap_or(1);
    let (count, per_block) = blocks(rows, EXP_COST * width + 1);
    pool.run(count, |block| task(block * per_block..rows.min((block + 1) * per_block)));
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

/// Forward over a range of rows.
struct Losses<'a, F> {
    rows: std::ops::Range<usize>,
    logits: View<'a, F>,
    targets: &'a [i32],
    weights: &'a [F],
    losses: ViewMut<'a, F>,
    lse: ViewMut<'a, F>,
}

impl<F: Float + Element> Kernel for Losses<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for row in self.rows {
            let logits = self.logits.row(row);
            let lse = log_sum_exp(isa, logits);
            let mut loss = F::ZERO;
            for (target, weight) in valid(self.targets, self.weights, row) {
                loss += weight * (lse - logits[target]);
            }
            // SAFETY: the row belongs to this task.
            unsafe {
                set_per_row(&self.losses, row, loss);
                set_per_row(&self.lse, row, lse);
            }
        }
    }
}

/// `log sum e^x`; minus infinity if every x is, NaN if any is.
#[inline(always)]
fn log_sum_exp<F: Float, I: Isa>(isa: I, x: &[F]) -> F {
    let (mut top, mut total) = (F::NEG_INFINITY, F::ZERO);
    for chunk in x.chunks(CHUNK) {
        let raised = greater(greatest(chunk), top);
        total = total * (top - pivot(raised)).exp_flushed(isa) + sum_exp(isa, chunk, pivot(raised));
        top = raised;
    }
    pivot(top) + total.ln()
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

/// Backward over a range of rows.
struct Gradient<'a, F> {
    rows: std::ops::Range<usize>,
    d_logits: ViewMut<'a, F>,
    accumulate: bool,
    d_losses: View<'a, F>,
    logits: View<'a, F>,
    lse: View<'a, F>,
    targets: &'a [i32],
    weights: &'a [F],
}

impl<F: Float + Element> Kernel for Gradient<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let in_place = self.d_logits.is_same(&self.logits);
        for row in self.rows {
            let valid = valid(self.targets, self.weights, row);
            // SAFETY: the row belongs to this task, and in place it is reached through this slice only.
            let d_row = unsafe { self.d_logits.row(row) };
            if valid.clone().next().is_none() {
                if !self.accumulate {
                    d_row.fill(F::ZERO);
                }
                continue;
            }
            let d_loss = per_row(&self.d_losses, row);
            let lse = per_row(&self.lse, row);
            let mut scale = F::ZERO;
            for (_, weight) in valid.clone() {
                scale += weight;
            }
            scale *= d_loss;
            if in_place {
                for d in d_row.iter_mut() {
                    let p = scale * (*d - lse).exp_flushed(isa);
                    *d = if self.accumulate { *d + p } else { p };
                }
            } else if self.accumulate {
                for (d, x) in d_row.iter_mut().zip(self.logits.row(row)) {
                    *d += scale * (*x - lse).exp_flushed(isa);
                }
            } else {
                for (d, x) in d_row.iter_mut().zip(self.logits.row(row)) {
                    *d = scale * (*x - lse).exp_flushed(isa);
                }
            }
            for (target, weight) in valid {
                d_row[target] -= d_loss * weight;
            }
        }
    }
}

#[cfg(test)]
#[path = "cross_entropy_tests.rs"]
mod tests;
