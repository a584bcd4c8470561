//! Embedding of patches: `out[n] = (1/K) sum_k table[ids[n, k]]`, the gather and the mean in one pass, and its gradient
//! `d_table[v] (+)= (1/K) sum over positions p of v of d_out[p / K]`. table [V, C], ids [N, K], out [N, C].
//!
//! Forward: blocks of rows are tasks. Backward: blocks of positions, sorted by id, are tasks, so that the few ids that hold most of
//! a text do not make one task long; an id inside a block is written by it, an id across blocks leaves a partial sum in
//! each, which a second pass adds in block order. Moves (K + 1) C elements a row forward, K C backward; as many additions.

use super::access::{Access, View, ViewMut};
use super::isa::{Isa, Kernel, dispatch};
use super::math::Float;
use super::parallel::{Pool, blocks};
use super::rows::RowsMut;
use super::stored::{Stored, with_stored};
use super::stream;
use super::with_float;
use crate::ScatterIndex;
use crate::backend::Destination;
use crate::{Element, Result, Tensor};
use std::ops::Range;
use std::sync::OnceLock;

/// Columns summed at a time, in registers.
const STRIP: usize = 32;

pub(super) fn patch_embedding(pool: &Pool, out: &Tensor, table: &Tensor, ids: &Tensor) -> Result<()> {
    with_float!("patch_embedding", out.dtype(), F => {
        if out.is_empty() {
            return Ok(());
        }
        let patch = ids.shape().last().copied().unwrap_or(1);
        let access = Access::new("patch_embedding", &[table, ids], &[out])?;
        let (rows, width) = (out.len() / table.dim(1), table.dim(1));
        let out = RowsMut::<F>::of(&access, Destination::write(out))?;
        let ids = access.view::<i32>(ids)?.slice();
        let (count, per_block) = blocks(rows, width * (patch + 1));
        with_stored!(table.dtype(), F, S => {
            let table = access.view::<S>(table)?;
            let (start, stride) = (table.layout().offset(), table.layout().strides()[0]);
            pool.run(count, |block| {
                let (mut out, mut offsets) = (out.writer(), vec![0; patch]);
                for row in block * per_block..rows.min((block + 1) * per_block) {
                    for (offset, &id) in offsets.iter_mut().zip(&ids[row * patch..]) {
                        *offset = start + id as usize * stride;
                    }
                    // SAFETY: the row belongs to this task.
                    unsafe { out.write(row, |out| dispatch(Mean { out, table, offsets: &offsets })) };
                }
            });
            Ok(())
        })
    })
}

/// Offset of row `i` of a view with leading dimensions.
fn row_offset(layout: &crate::Layout, i: usize) -> usize {
    let width = layout.shape().last().copied().unwrap_or(1);
    layout.offset_of(i * width)
}

/// Adds rows of a matrix strip by strip: `row(offsets[0]) + row(offsets[1]) + ...`, in this order, for columns of `to`,
/// which `finish` receives with their sums.
#[inline(always)]
fn add_rows<F: Float, S: Stored<F> + Element>(
    x: &View<S>,
    offsets: &[usize],
    to: &mut [F],
    finish: impl Fn(&mut F, F),
) {
    let mut column = 0;
    let (strips, rest) = to.as_chunks_mut::<STRIP>();
    for strip in strips {
        let mut sums = [F::ZERO; STRIP];
        for &offset in offsets {
            // SAFETY: `offset` starts a row of the view that is as wide as `to`; the columns lie inside it.
            let row = unsafe { &*x.at(offset + column).cast::<[S; STRIP]>() };
            for i in 0..STRIP {
                sums[i] += row[i].wide();
            }
        }
        for i in 0..STRIP {
            finish(&mut strip[i], sums[i]);
        }
        column += STRIP;
    }
    for (i, value) in rest.iter_mut().enumerate() {
        let mut sum = F::ZERO;
        for &offset in offsets {
            // SAFETY: as above.
            sum += unsafe { *x.at(offset + column + i) }.wide();
        }
        finish(value, sum);
    }
}

/// The mean of rows of the table.
struct Mean<'a, F, S> {
    out: &'a mut [F],
    table: View<'a, S>,
    offsets: &'a [usize],
}

impl<F: Float, S: Stored<F> + Element> Kernel for Mean<'_, F, S> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let share = F::ONE / F::from_f64(self.offsets.len() as f64);
        add_rows(&self.table, self.offsets, self.out, |value, sum| *value = sum * share);
    }
}

pub(super) fn patch_embedding_backward(
    pool: &Pool,
    d_table: Destination,
    d_out: &Tensor,
    index: &ScatterIndex,
    patch: usize,
) -> Result<()> {
    with_float!("patch_embedding_backward", d_out.dtype(), F => {
        if d_table.tensor.is_empty() {
            return Ok(());
        }
        let access = Access::converting(pool, "patch_embedding_backward", &[d_out, index.order(), index.offsets()], &[d_table.tensor])?;
        let order = access.view::<i32>(index.order())?.slice();
        let width = d_table.tensor.dim(1);
        let (accumulate, d_table) = (d_table.accumulate, access.destination::<F>(d_table)?);
        let (offsets, per_block) = (access.view::<i32>(index.offsets())?.slice(), blocks(order.len(), width).1);
        with_stored!(d_out.dtype(), F, S => {
            let d_out = access.view::<S>(d_out)?;
            scatter(pool, &Scatter { d_table, accumulate, d_out, order, offsets, patch, per_block });
            Ok(())
        })
    })
}

fn scatter<F: Float + Element, S: Stored<F> + Element>(pool: &Pool, scatter: &Scatter<F, S>) {
    let partials: Vec<OnceLock<Partials<F>>> = (0..scatter.blocks()).map(|_| OnceLock::new()).collect();
    pool.run(partials.len(), |block| {
        partials[block].get_or_init(|| dispatch(BlockSums { scatter, block }));
    });
    let (count, per_task) = blocks(scatter.offsets.len() - 1, scatter.width());
    pool.run(count, |task| {
        let ids = task * per_task..(scatter.offsets.len() - 1).min((task + 1) * per_task);
        dispatch(Rest { scatter, partials: &partials, ids });
    });
}

/// What the tasks of the backward share.
struct Scatter<'a, F, S> {
    d_table: ViewMut<'a, F>,
    accumulate: bool,
    d_out: View<'a, S>,
    order: &'a [i32],
    offsets: &'a [i32],
    patch: usize,
    /// Positions a block.
    per_block: usize,
}

/// The sums that a block leaves of ids it shares with others: of the id that began in an earlier block, and of the one that begins in this
/// and goes on. Empty if there is none.
struct Partials<F> {
    earlier: Vec<F>,
    later: Vec<F>,
}

impl<F: Float + Element, S> Scatter<'_, F, S> {
    /// Elements of a row of the table.
    fn width(&self) -> usize {
        self.d_table.layout().shape()[1]
    }

    fn blocks(&self) -> usize {
        self.order.len().div_ceil(self.per_block)
    }

    /// Where id `id` stands in `order`.
    #[inline(always)]
    fn places(&self, id: usize) -> Range<usize> {
        self.offsets[id] as usize..self.offsets[id + 1] as usize
    }

    /// Adds `sum / K` to row `id` of the gradient, or sets it.
    #[inline(always)]
    fn finish(&self, value: &mut F, sum: F) {
        let share = F::ONE / F::from_f64(self.patch as f64);
        *value = if self.accumulate { *value + sum * share } else { sum * share };
    }
}

/// First pass, one block of positions.
struct BlockSums<'a, F, S> {
    scatter: &'a Scatter<'a, F, S>,
    block: usize,
}

impl<F: Float + Element, S: Stored<F> + Element> Kernel for BlockSums<'_, F, S> {
    type Output = Partials<F>;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> Partials<F> {
        let Scatter { d_table, d_out, order, offsets, patch, per_block, .. } = self.scatter;
        let block = self.block * per_block..order.len().min((self.block + 1) * per_block);
        let rows: Vec<usize> =
            order[block.clone()].iter().map(|&p| row_offset(d_out.layout(), p as usize / patch)).collect();
        let width = self.scatter.width();
        let mut partials = Partials { earlier: Vec::new(), later: Vec::new() };
        // The id of the block's first position: the last one that starts at or before it.
        let mut id = offsets.partition_point(|&start| start as usize <= block.start) - 1;
        let mut at = block.start;
        while at < block.end {
            let places = self.scatter.places(id);
            let end = places.end.min(block.end);
            let rows = &rows[at - block.start..end - block.start];
            if places.start < block.start {
                partials.earlier = vec![F::ZERO; width];
                add_rows(d_out, rows, &mut partials.earlier, |value, sum| *value = sum);
            } else if places.end > block.end {
                partials.later = vec![F::ZERO; width];
                add_rows(d_out, rows, &mut partials.later, |value, sum| *value = sum);
            } else if !rows.is_empty() {
                // SAFETY: all positions of the id lie in this block, so no other task writes its row.
                let to = unsafe { d_table.row(id) };
                add_rows(d_out, rows, to, |value, sum| self.scatter.finish(value, sum));
            }
            at = end;
            id += 1;
        }
        partials
    }
}

/// Second pass, a range of ids: those that lie across blocks, and those that do not occur.
struct Rest<'a, F, S> {
    scatter: &'a Scatter<'a, F, S>,
    partials: &'a [OnceLock<Partials<F>>],
    ids: Range<usize>,
}

impl<F: Float + Element, S: Stored<F> + Element> Kernel for Rest<'_, F, S> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let scatter = self.scatter;
        let width = scatter.width();
        let mut sum = vec![F::ZERO; width];
        for id in self.ids {
            let places = scatter.places(id);
            let (first, last) = (places.start / scatter.per_block, places.end.saturating_sub(1) / scatter.per_block);
            // SAFETY: each id is in one range, and the first pass, which is over, left the rows alone that are taken here.
            let row = || unsafe { scatter.d_table.row(id) };
            if places.is_empty() {
                if !scatter.accumulate {
                    stream::fill(row(), F::ZERO, scatter.d_table.layout().len() * size_of::<F>());
                }
                continue;
            }
            if first == last {
                continue;
            }
            sum.fill(F::ZERO);
            for (block, partials) in (first..=last).zip(&self.partials[first..=last]) {
                let Some(partials) = partials.get() else { continue };
                let part = if block == first { &partials.later } else { &partials.earlier };
                for (sum, part) in sum.iter_mut().zip(part) {
                    *sum += *part;
                }
            }
            for (value, sum) in row().iter_mut().zip(&sum) {
                scatter.finish(value, *sum);
            }
        }
    }
}

#[cfg(test)]
#[path = "patch_embedding_tests.rs"]
mod tests;
