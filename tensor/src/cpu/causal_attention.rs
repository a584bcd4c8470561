//! Causal attention in blocks of queries and keys (Dao, arXiv 2307.08691): `out = softmax(scale * q k^T + mask) v` per head, q and out
//! [B, T, H, D], k and v [B, S, G, D]; of the scores only one block exists at a time, transposed, a key a row and a query a
//! column, so that maxima, sums and exponentials of all its queries run along vectors and no factor but q is transposed.
//!
//! Blocks above the diagonal are skipped, and on it what no query of a panel sees. 4 D FLOPs a visible score forward, 10 D backward.
//! Rows are copied into buffers of a task, padded to whole vectors, a copy for every 64 multiply-adds. What is stored in bf16 is widened there, or,
//! where the processor multiplies bf16 as it is, kept as pairs of neighbours along what is summed over; then probabilities and their gradients are
//! rounded to bf16 too before they are multiplied, as on a card.

mod backward;
mod factors;
mod few_queries;
mod forward;
mod output;
mod product;

pub(super) use backward::causal_attention_backward;
pub(super) use forward::causal_attention;

use std::marker::PhantomData;
use std::ops::Range;

use super::cells::{Cell, Pairs};
use super::isa::{Isa, Kernel, dispatch, dispatch_bf16, path};
use super::math::Float;
use crate::{DType, Layout, Tensor};

/// Keys of a block.
const KEYS: usize = 64;

/// Columns of a panel, the queries whose scores are made together: two vectors of f32, or two of f64.
const fn panel<F: Float, I: Isa>() -> usize {
    I::LANES * 8 / size_of::<F>()
}

/// [`panel`] of the path that this runs on.
struct Panel<F>(PhantomData<F>);

impl<F: Float> Kernel for Panel<F> {
    type Output = usize;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> usize {
        panel::<F, I>()
    }
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

/// Whether q, k and v are multiplied as pairs. Their scores are scaled after the sum: a mask of minus infinity must stay what it is.
fn in_pairs(q: &Tensor, scale: f64) -> bool {
    q.dtype() == DType::BF16 && path().multiplies_bf16() && scale > 0.0
}

/// Runs a kernel of products of cells C on the path of this process.
fn dispatch_of<C: 'static, K: Kernel>(kernel: K) -> K::Output {
    if std::any::TypeId::of::<C>() == std::any::TypeId::of::<Pairs>() {
        dispatch_bf16(kernel)
    } else {
        dispatch(kernel)
    }
}

/// The factor of q, and that of the scores, whose product is `scale`: what is stored in pairs is not scaled.
fn split_scale<F: Float, C: Cell<F>>(scale: F) -> (F, F) {
    if C::VALUES == 1 { (scale, F::ONE) } else { (F::ONE, scale) }
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

#[cfg(test)]
mod tests;
