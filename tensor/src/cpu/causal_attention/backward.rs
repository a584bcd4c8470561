//! The backward pass. With p and ds of a tile recomputed from lse: d_v += p^T d_out, d_k += ds^T q, d_q += ds k.
//!
//! With many (batch, key head) pairs, each is one task that owns d_k and d_v of its head and d_q of its group: five products a tile. With few,
//! blocks of keys are the tasks for d_k and d_v and blocks of queries those for d_q: seven products, but enough tasks. Which of the two is
//! decided by shapes; in both, every sum is taken in a fixed order.

use std::ops::Range;

use super::{KEYS, QUERIES, Sizes, matrix, output_row, tile};
use crate::cpu::gemm::{MatRef, gemm_single};
use crate::cpu::math::{Float, dot};
use crate::cpu::memory::{Access, View, ViewMut};
use crate::cpu::parallel::Pool;
use crate::cpu::reduce::each_mut;
use crate::cpu::rms_norm::put;
use crate::cpu::vectorized::vectorized;
use crate::cpu::with_float;
use crate::{Destination, Element, Result, Tensor};

/// From so many (batch, key head) pairs on, a pair is a task.
const PAIRS: usize = 8;

vectorized! {
    fn inner<'a, F>(isa: I, a: &'a [F], b: &'a [F]) -> F {
        dot(isa, a, b)
    }
}

vectorized! {
    /// A row of scores becomes probabilities, a row of d_p becomes ds; masked from `visible` on.
    fn row<'a, F>(isa: I, p: &'a mut [F], ds: &'a mut [F], visible: usize, lse: F, delta: F, scale: F) -> () {
        for (p, d) in p[..visible].iter_mut().zip(&mut ds[..visible]) {
            *p = (*p - lse).exp(isa);
            *d = *p * (*d - delta) * scale;
        }
        p[visible..].fill(F::ZERO);
        ds[visible..].fill(F::ZERO);
    }
}

/// All that a task reads.
struct Inputs<'a, F> {
    sizes: Sizes,
    q: View<'a, F>,
    k: View<'a, F>,
    v: View<'a, F>,
    d_out: View<'a, F>,
    lse: &'a [F],
    /// [B, H, T]: `rowsum(d_out * out)`.
    delta: &'a [F],
    scale: F,
}

/// Scratch of a task: one tile of p and one of ds.
struct Tiles<F> {
    p: Vec<F>,
    ds: Vec<F>,
}

impl<F: Float> Tiles<F> {
    fn new() -> Self {
        Tiles { p: vec![F::ZERO; QUERIES * KEYS], ds: vec![F::ZERO; QUERIES * KEYS] }
    }
}

impl<F: Float + Element> Inputs<'_, F> {
    /// p and ds of a tile, row-major.
    fn tile(&self, tiles: &mut Tiles<F>, batch: usize, head: usize, queries: &Range<usize>, keys: &Range<usize>) {
        let group = head / self.sizes.per_group();
        let (rows, cols) = (queries.len(), keys.len());
        let q = matrix(&self.q, batch, head, queries);
        let d_out = matrix(&self.d_out, batch, head, queries);
        // SAFETY: the tiles are the task's scratch, the factors lie inside their locked views.
        unsafe {
            gemm_single(tile(&mut tiles.p, rows, cols), q, matrix(&self.k, batch, group, keys).t(), self.scale, false);
            gemm_single(tile(&mut tiles.ds, rows, cols), d_out, matrix(&self.v, batch, group, keys).t(), F::ONE, false);
        }
        let start = (batch * self.sizes.heads + head) * self.sizes.queries;
        for (i, t) in queries.clone().enumerate() {
            let visible = self.sizes.visible(t).saturating_sub(keys.start).min(cols);
            let (p, ds) = (&mut tiles.p[i * cols..(i + 1) * cols], &mut tiles.ds[i * cols..(i + 1) * cols]);
            row(p, ds, visible, self.lse[start + t], self.delta[start + t], self.scale);
        }
    }

    /// `d_k += ds^T q` and `d_v += p^T d_out` of a tile, into rows `keys` of [S, D] scratch.
    fn add_keys(
        &self,
        tiles: &Tiles<F>,
        batch: usize,
        head: usize,
        queries: &Range<usize>,
        d_k: &mut [F],
        d_v: &mut [F],
    ) {
        let (rows, cols, width) = (queries.len(), d_k.len() / self.sizes.width, self.sizes.width);
        let transposed = |x: &[F]| MatRef::contiguous(x.as_ptr(), rows, cols).t();
        // SAFETY: as in `tile`.
        unsafe {
            gemm_single(
                tile(d_k, cols, width),
                transposed(&tiles.ds),
                matrix(&self.q, batch, head, queries),
                F::ONE,
                true,
            );
            gemm_single(
                tile(d_v, cols, width),
                transposed(&tiles.p),
                matrix(&self.d_out, batch, head, queries),
                F::ONE,
                true,
            );
        }
    }

    /// `d_q += ds k` of a tile.
    fn add_queries(&self, tiles: &Tiles<F>, batch: usize, head: usize, keys: &Range<usize>, d_q: &mut [F]) {
        let (rows, width) = (d_q.len() / self.sizes.width, self.sizes.width);
        let ds = MatRef::contiguous(tiles.ds.as_ptr(), rows, keys.len());
        let k = matrix(&self.k, batch, head / self.sizes.per_group(), keys);
        // SAFETY: as in `tile`.
        unsafe { gemm_single(tile(d_q, rows, width), ds, k, F::ONE, true) };
    }

    /// Blocks of keys that a block of queries sees.
    fn key_blocks(&self, queries: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<F> {
        let end = self.sizes.visible(queries.end - 1);
        (0..end).step_by(KEYS).map(move |first| first..(first + KEYS).min(end))
    }
}

/// The outputs with their accumulate flags.
struct Outputs<'a, F> {
    d_q: (ViewMut<'a, F>, bool),
    d_k: (ViewMut<'a, F>, bool),
    d_v: (ViewMut<'a, F>, bool),
}

/// Writes rows `range` of a head.
fn put_rows<F: Float + Element>(
    (view, add): &(ViewMut<F>, bool),
    batch: usize,
    head: usize,
    range: Range<usize>,
    rows: &[F],
) {
    let width = rows.len() / range.len().max(1);
    for (t, row) in range.zip(rows.chunks(width.max(1))) {
        // SAFETY: callers own these positions of this head.
        put(*add, unsafe { output_row(view, batch, t, head) }, row);
    }
}

/// Gradients for q, k and v.
pub(in crate::cpu) fn causal_attention_backward(
    pool: &Pool,
    gradients: [Destination; 3],
    d_out: &Tensor,
    [q, k, v]: [&Tensor; 3],
    out: &Tensor,
    lse: &Tensor,
    scale: f64,
) -> Result<()> {
    let sizes = Sizes::of(q, k);
    with_float!("causal_attention_backward", q.dtype(), F => {
        let tensors = gradients.map(|g| g.tensor);
        let access = Access::new("causal_attention_backward", &[d_out, q, k, v, out, lse], &tensors)?;
        let [d_q, d_k, d_v] = [0, 1, 2].map(|i| access.view_mut::<F>(tensors[i]).map(|view| (view, gradients[i].accumulate)));
        let outputs = Outputs { d_q: d_q?, d_k: d_k?, d_v: d_v? };
        let (d_out, out) = (access.view::<F>(d_out)?, access.view::<F>(out)?);
        let mut delta = vec![F::default(); sizes.batch * sizes.heads * sizes.queries];
        each_mut(pool, &mut delta, sizes.queries.max(1), |i, part| {
            let (batch, head) = (i / sizes.heads, i % sizes.heads);
            for (t, delta) in part.iter_mut().enumerate() {
                let r = (batch * sizes.queries + t) * sizes.heads + head;
                *delta = inner(d_out.row(r), out.row(r));
            }
        });
        let inputs = Inputs {
            sizes,
            q: access.view::<F>(q)?,
            k: access.view::<F>(k)?,
            v: access.view::<F>(v)?,
            d_out,
            lse: access.view::<F>(lse)?.slice(),
            delta: &delta,
            scale: F::from_f64(scale),
        };
        match sizes.batch * sizes.groups >= PAIRS {
            true => by_pairs(pool, &inputs, &outputs),
            false => {
                keys_by_blocks(pool, &inputs, &outputs);
                queries_by_blocks(pool, &inputs, &outputs);
            }
        }
        Ok(())
    })
}

/// One task for each batch entry and key head.
fn by_pairs<F: Float + Element>(pool: &Pool, inputs: &Inputs<F>, outputs: &Outputs<F>) {
    let sizes = inputs.sizes;
    pool.run(sizes.batch * sizes.groups, |task| {
        let (batch, group) = (task / sizes.groups, task % sizes.groups);
        let width = sizes.width;
        let (mut d_k, mut d_v) = (vec![F::ZERO; sizes.keys * width], vec![F::ZERO; sizes.keys * width]);
        let mut d_q = vec![F::ZERO; QUERIES * width];
        let mut tiles = Tiles::new();
        for head in group * sizes.per_group()..(group + 1) * sizes.per_group() {
            for block in 0..sizes.query_blocks() {
                let queries = sizes.query_block(block);
                let d_q = &mut d_q[..queries.len() * width];
                d_q.fill(F::ZERO);
                for keys in inputs.key_blocks(&queries) {
                    inputs.tile(&mut tiles, batch, head, &queries, &keys);
                    let rows = keys.start * width..keys.end * width;
                    inputs.add_keys(&tiles, batch, head, &queries, &mut d_k[rows.clone()], &mut d_v[rows]);
                    inputs.add_queries(&tiles, batch, head, &keys, d_q);
                }
                put_rows(&outputs.d_q, batch, head, queries, d_q);
            }
        }
        put_rows(&outputs.d_k, batch, group, 0..sizes.keys, &d_k);
        put_rows(&outputs.d_v, batch, group, 0..sizes.keys, &d_v);
    });
}

/// d_k and d_v, one task for each block of keys of a key head.
fn keys_by_blocks<F: Float + Element>(pool: &Pool, inputs: &Inputs<F>, outputs: &Outputs<F>) {
    let sizes = inputs.sizes;
    let blocks = sizes.keys.div_ceil(KEYS);
    pool.run(blocks * sizes.batch * sizes.groups, |task| {
        let (block, pair) = (task / (sizes.batch * sizes.groups), task % (sizes.batch * sizes.groups));
        let (batch, group) = (pair / sizes.groups, pair % sizes.groups);
        let keys = block * KEYS..((block + 1) * KEYS).min(sizes.keys);
        let (mut d_k, mut d_v) = (vec![F::ZERO; keys.len() * sizes.width], vec![F::ZERO; keys.len() * sizes.width]);
        let mut tiles = Tiles::new();
        for head in group * sizes.per_group()..(group + 1) * sizes.per_group() {
            for queries in (0..sizes.query_blocks()).map(|b| sizes.query_block(b)) {
                if sizes.visible(queries.end - 1) > keys.start {
                    inputs.tile(&mut tiles, batch, head, &queries, &keys);
                    inputs.add_keys(&tiles, batch, head, &queries, &mut d_k, &mut d_v);
                }
            }
        }
        put_rows(&outputs.d_k, batch, group, keys.clone(), &d_k);
        put_rows(&outputs.d_v, batch, group, keys, &d_v);
    });
}

/// d_q, one task for each block of queries of a head.
fn queries_by_blocks<F: Float + Element>(pool: &Pool, inputs: &Inputs<F>, outputs: &Outputs<F>) {
    let sizes = inputs.sizes;
    let blocks = sizes.query_blocks();
    pool.run(blocks * sizes.batch * sizes.heads, |task| {
        let (block, pair) = (blocks - 1 - task / (sizes.batch * sizes.heads), task % (sizes.batch * sizes.heads));
        let (batch, head) = (pair / sizes.heads, pair % sizes.heads);
        let queries = sizes.query_block(block);
        let mut d_q = vec![F::ZERO; queries.len() * sizes.width];
        let mut tiles = Tiles::new();
        for keys in inputs.key_blocks(&queries) {
            inputs.tile(&mut tiles, batch, head, &queries, &keys);
            inputs.add_queries(&tiles, batch, head, &keys, &mut d_q);
        }
        put_rows(&outputs.d_q, batch, head, queries, &d_q);
    });
}
