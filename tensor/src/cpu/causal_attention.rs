//! Causal attention in blocks of queries and keys (Dao, arXiv 2307.08691): `out = softmax(scale * q k^T + mask) v` per head, q and out
//! [B, T, H, D], k and v [B, S, G, D]; of the scores only one block exists at a time, transposed, a key a row and a query a
//! column, so that maxima, sums and exponentials of all its queries run along vectors and no factor but q is transposed.
//!
//! Blocks above the diagonal are skipped, and on it what no query of a panel sees. 4 D FLOPs a visible score forward, 10 D backward.
//! Rows are copied into buffers of a task, padded to whole vectors, a copy for every 64 multiply-adds.

mod backward;
mod few_queries;
mod forward;
mod product;

pub(super) use backward::causal_attention_backward;
pub(super) use forward::causal_attention;

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};

use bytemuck::{Pod, Zeroable};

use super::access::{View, ViewMut};
use super::isa::Isa;
use super::math::Float;
use super::transpose::{SQUARE, transpose};
use crate::{Element, Layout, Tensor};

/// Keys of a block.
const KEYS: usize = 64;

/// Columns of a panel, the queries whose scores are made together: two vectors of f32, or two of f64.
const fn panel<F: Float, I: Isa>() -> usize {
    I::LANES * 8 / size_of::<F>()
}

/// Sizes: batch, query and key positions, query and key heads, head size.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    groups: usize,
    width: usize,
}

impl Sizes {
    fn of(q: &Tensor, k: &Tensor) -> Sizes {
        Sizes { batch: q.dim(0), queries: q.dim(1), keys: k.dim(1), heads: q.dim(2), groups: k.dim(2), width: q.dim(3) }
    }

    /// Query heads that share a key head.
    fn per_group(&self) -> usize {
        self.heads / self.groups.max(1)
    }

    /// How many keys query `t` sees.
    fn visible(&self, t: usize) -> usize {
        t + 1 + self.keys - self.queries
    }

    /// How many of the keys from `first` on, at most [`KEYS`], the last query of `queries` sees.
    fn seen(&self, queries: &Range<usize>, first: usize) -> usize {
        self.visible(queries.end.min(self.queries) - 1).saturating_sub(first).min(KEYS)
    }

    /// Positions of block `i` of blocks of `size` queries.
    fn query_block(&self, i: usize, size: usize) -> Range<usize> {
        i * size..((i + 1) * size).min(self.queries)
    }

    /// Whether a score of this size of problem is worth waking threads for.
    fn is_small(&self) -> bool {
        self.batch * self.heads * self.queries * self.keys * self.width < 1 << 15
    }
}

/// One head of one batch entry of an input [B, T, H, D].
#[derive(Clone, Copy)]
struct Head<'a, F> {
    view: View<'a, F>,
    start: usize,
    stride: usize,
    positions: usize,
    width: usize,
}

impl<'a, F: Float + Element> Head<'a, F> {
    fn new(view: &View<'a, F>, batch: usize, head: usize) -> Self {
        let (shape, strides) = (view.layout().shape(), view.layout().strides());
        assert!(batch < shape[0] && head < shape[2] && view.layout().has_contiguous_rows());
        let start = view.layout().offset() + batch * strides[0] + head * strides[2];
        Head { view: *view, start, stride: strides[1], positions: shape[1], width: shape[3] }
    }

    #[inline(always)]
    fn row(&self, t: usize) -> &'a [F] {
        assert!(t < self.positions);
        // SAFETY: row t of the head lies inside the view, and its last dimension is contiguous.
        unsafe { std::slice::from_raw_parts(self.view.at(self.start + t * self.stride), self.width) }
    }

    /// Rows `range`, each padded to `pitch` values, a multiple of N; the padding stays what it is.
    #[inline(always)]
    fn copy_rows<const N: usize>(&self, range: Range<usize>, to: &mut [F], pitch: usize) {
        for (t, to) in range.zip(to.chunks_exact_mut(pitch.max(1))) {
            let (vectors, rest) = self.row(t).as_chunks::<N>();
            let (whole, last) = to.split_at_mut(vectors.len() * N);
            // Vector by vector: a call that copies a row costs more than the row.
            for (to, vector) in whole.as_chunks_mut::<N>().0.iter_mut().zip(vectors) {
                *to = *vector;
            }
            last.iter_mut().zip(rest).for_each(|(to, x)| *to = *x);
        }
    }

    /// Rows `range` times `factor`, transposed in panels of N rows, each [D, N]; rows that the last panel lacks are zeros.
    #[inline(always)]
    fn transpose<const N: usize>(&self, range: Range<usize>, factor: F, to: &mut [F]) {
        let padded = range.len().next_multiple_of(N);
        if padded != range.len() {
            to[(padded - N) * self.width..padded * self.width].fill(F::ZERO);
        }
        for i in (0..range.len()).step_by(SQUARE) {
            let columns = to[i / N * N * self.width..(i / N + 1) * N * self.width].as_chunks_mut::<N>().0;
            let rows = self.rows_from(range.start + i);
            let (place, count) = (i % N, SQUARE.min(range.len() - i));
            let whole = if count == SQUARE { self.width / SQUARE * SQUARE } else { 0 };
            for (j, columns) in columns[..whole].chunks_exact_mut(SQUARE).enumerate() {
                let at = j * SQUARE;
                let [a, b, c, d] = rows;
                let lines =
                    [scaled(a, at, factor), scaled(b, at, factor), scaled(c, at, factor), scaled(d, at, factor)];
                for (column, line) in columns.iter_mut().zip(transpose(lines)) {
                    *column[place..].first_chunk_mut().expect("N is a multiple of SQUARE") = line;
                }
            }
            for (j, column) in columns.iter_mut().enumerate().skip(whole) {
                column[place..].iter_mut().zip(&rows).take(count).for_each(|(x, row)| *x = row[j] * factor);
            }
        }
    }

    /// Four rows from `t` on; the last row stands in for those beyond it.
    #[inline(always)]
    fn rows_from(&self, t: usize) -> [&'a [F]; SQUARE] {
        std::array::from_fn(|i| self.row((t + i).min(self.positions - 1)))
    }
}

/// [`SQUARE`] values of a row from `at` on, times `factor`. (A closure given to `map` would not be compiled for the instruction path.)
#[inline(always)]
fn scaled<F: Float>(row: &[F], at: usize, factor: F) -> [F; SQUARE] {
    let values = row[at..].first_chunk::<SQUARE>().expect("a whole square");
    [values[0] * factor, values[1] * factor, values[2] * factor, values[3] * factor]
}

/// Row (batch, position, head) of an output [B, T, H, D].
///
/// # Safety
/// As [`ViewMut::row`].
#[inline(always)]
unsafe fn output_row<'a, F: Float + Element>(view: &ViewMut<'a, F>, at: [usize; 3]) -> &'a mut [F] {
    let (shape, strides) = (view.layout().shape(), view.layout().strides());
    assert!(at[0] < shape[0] && at[1] < shape[1] && at[2] < shape[2]);
    let start = view.layout().offset() + at[0] * strides[0] + at[1] * strides[1] + at[2] * strides[2];
    // SAFETY: the row lies inside the view, whose last dimension is contiguous; exclusive by the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(view.at(start), shape[3]) }
}

/// Where the log-sum-exps [B, H, T] of a head begin; those of its positions are neighbours.
fn lse_offset(layout: &Layout, batch: usize, head: usize) -> usize {
    let strides = layout.strides();
    assert!(batch < layout.shape()[0] && head < layout.shape()[1] && layout.has_contiguous_rows());
    layout.offset() + batch * strides[0] + head * strides[1]
}

/// Scores of `count` keys from `first` on (rows, `pitch` apart) for N queries from `start` on (columns) become minus infinity
/// where the query does not see the key.
#[inline(always)]
fn mask<F: Float, const N: usize>(
    (scores, pitch): (&mut [F], usize),
    count: usize,
    sizes: &Sizes,
    first: usize,
    start: usize,
) {
    let visible = sizes.visible(start);
    for (j, row) in scores.chunks_mut(pitch).enumerate().take(count).skip(visible.saturating_sub(first)) {
        let hidden = (first + j + 1 - visible).min(N);
        row[..hidden].fill(F::NEG_INFINITY);
    }
}

/// The unit of scratch, which keeps it on cache lines.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Scratch values that start at a cache line.
struct Aligned<F> {
    lines: Vec<Line>,
    len: usize,
    values: PhantomData<F>,
}

impl<F: Float> Aligned<F> {
    fn zeros(len: usize) -> Self {
        let lines = vec![Line([0; 64]); (len * size_of::<F>()).div_ceil(size_of::<Line>())];
        Aligned { lines, len, values: PhantomData }
    }
}

impl<F: Float> Deref for Aligned<F> {
    type Target = [F];

    #[inline(always)]
    fn deref(&self) -> &[F] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<F: Float> DerefMut for Aligned<F> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [F] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

#[cfg(test)]
mod tests;
