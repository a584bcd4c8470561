//! Causal attention in blocks of queries and keys (Dao, arXiv 2307.08691): the scores exist one tile at a time.
//!
//! A tile's products run on the calling thread; tiles above the diagonal are skipped, those on it are masked. Forward costs 4 D FLOP a visible score,
//! backward 10 D (14 D where d_q has a pass of its own).

mod backward;
mod forward;

pub(super) use backward::causal_attention_backward;
pub(super) use forward::causal_attention;

use super::gemm::{MatMut, MatRef};
use super::math::Float;
use super::memory::{View, ViewMut};
use crate::{Element, Tensor};

/// Queries of a tile.
const QUERIES: usize = 64;
/// Keys of a tile.
const KEYS: usize = 128;

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
        self.heads / self.groups
    }

    /// How many keys query `t` sees.
    fn visible(&self, t: usize) -> usize {
        t + 1 + self.keys - self.queries
    }

    /// Blocks of queries.
    fn query_blocks(&self) -> usize {
        self.queries.div_ceil(QUERIES)
    }

    /// Positions of query block `i`.
    fn query_block(&self, i: usize) -> std::ops::Range<usize> {
        i * QUERIES..((i + 1) * QUERIES).min(self.queries)
    }
}

/// Positions `range` of head `head` of [B, T, H, D] as a matrix [positions, D].
fn matrix<F: Float + Element>(view: &View<F>, batch: usize, head: usize, range: &std::ops::Range<usize>) -> MatRef<F> {
    let (l, s) = (view.layout(), view.layout().strides());
    let start = l.offset() + batch * s[0] + range.start * s[1] + head * s[2];
    MatRef::new(view.at(start), range.len(), l.shape()[3], s[1] as isize, 1)
}

/// Row `t` of head `head` of an output [B, T, H, D].
///
/// # Safety
/// As [`ViewMut::row`].
unsafe fn output_row<'a, F: Float + Element>(
    view: &ViewMut<'a, F>,
    batch: usize,
    t: usize,
    head: usize,
) -> &'a mut [F] {
    let shape = view.layout().shape();
    // SAFETY: the caller's promise.
    unsafe { view.row((batch * shape[1] + t) * shape[2] + head) }
}

/// The first `rows` x `cols` of a scratch tile, row-major without gaps.
fn tile<F: Float>(scratch: &mut [F], rows: usize, cols: usize) -> MatMut<F> {
    assert!(rows * cols <= scratch.len());
    MatMut::contiguous(scratch.as_mut_ptr(), rows, cols)
}
