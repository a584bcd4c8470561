//! The backward pass. With `p = e^(s - lse)` and `ds = p (d_out v^T - delta)` of a block recomputed: `d_v += p^T d_out`, `d_k += ds^T q`,
//! `d_q += ds k`, `delta = rowsum(d_out * out)`; five products a block, the scale applied to q on the way in and to d_q and d_k on the way out.
//!
//! A task is a chunk of the query blocks of all heads that share a key head: it owns their d_q and sums d_k and d_v over them in
//! order. One chunk where there are (batch, key head) pairs enough; where there are few, several, whose sums are then added in
//! order. How many is decided by the shape alone.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::OnceLock;

use super::factors::{Head, joined, joined_len, narrow_row};
use super::output::Output;
use super::product::{Left, ROWS, add_product};
use super::{Aligned, KEYS, Sizes, dispatch_of, in_pairs, lse_offset, mask, panel, split_scale};
use crate::cpu::access::{Access, View};
use crate::cpu::cells::{Cell, Pairs, Wide};
use crate::cpu::isa::{Isa, Kernel, dispatch};
use crate::cpu::math::{Float, dot};
use crate::cpu::parallel::{Pool, blocks};
use crate::cpu::stored::{Stored, with_stored};
use crate::cpu::with_float;
use crate::{Destination, Element, Result, Tensor};

/// Queries of a block: a multiple of every panel.
const QUERIES: usize = 64;
/// Tasks that are wanted; fewer (batch, key head) pairs are cut into chunks of queries.
const TASKS: usize = 8;

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
    if in_pairs(q, scale) {
        return with_cells::<f32, Pairs>(pool, gradients, d_out, [q, k, v], out, lse, scale as f32);
    }
    with_float!("causal_attention_backward", q.dtype(), F => {
        let scale = F::from_f64(scale);
        with_stored!(q.dtype(), F, S => with_cells::<F, Wide<S>>(pool, gradients, d_out, [q, k, v], out, lse, scale))
    })
}

fn with_cells<F: Float + Element, C: Cell<F, Stored: Element>>(
    pool: &Pool,
    gradients: [Destination; 3],
    d_out: &Tensor,
    [q, k, v]: [&Tensor; 3],
    out: &Tensor,
    lse: &Tensor,
    scale: F,
) -> Result<()> {
    let tensors = gradients.map(|g| g.tensor);
    let access = Access::new("causal_attention_backward", &[d_out, q, k, v, out, lse], &tensors)?;
    let backward = Backward::<F, C::Stored> {
        sizes: Sizes::of(q, k),
        q: access.view(q)?,
        k: access.view(k)?,
        v: access.view(v)?,
        out: access.view(out)?,
        d_out: access.view(d_out)?,
        lse: access.view::<F>(lse)?,
        d_q: Output::of(&access, gradients[0])?,
        d_k: Output::of(&access, gradients[1])?,
        d_v: Output::of(&access, gradients[2])?,
        scale,
    };
    run::<F, C>(pool, &backward);
    Ok(())
}

/// What the tasks share.
struct Backward<'a, F, S> {
    sizes: Sizes,
    q: View<'a, S>,
    k: View<'a, S>,
    v: View<'a, S>,
    out: View<'a, S>,
    d_out: View<'a, S>,
    lse: View<'a, F>,
    d_q: Output<'a, F>,
    d_k: Output<'a, F>,
    d_v: Output<'a, F>,
    scale: F,
}

/// Sums of d_k (before the scale) and d_v over a chunk: [keys seen, pitch] each.
struct Sums<F> {
    pitch: usize,
    d_k: Aligned<F>,
    d_v: Aligned<F>,
}

/// Query blocks of chunk `i` of `chunks`, such that chunks hold about equally many scores.
fn chunk(query_blocks: usize, chunks: usize, i: usize) -> Range<usize> {
    let cut = |i: usize| (query_blocks as f64 * (i as f64 / chunks as f64).sqrt()).round() as usize;
    cut(i)..cut(i + 1)
}

fn run<F: Float + Element, C: Cell<F, Stored: Element>>(pool: &Pool, backward: &Backward<F, C::Stored>) {
    let sizes = &backward.sizes;
    let pairs = sizes.batch * sizes.groups;
    let chunks = TASKS.div_ceil(pairs.max(1)).min(sizes.queries.div_ceil(QUERIES)).max(1);
    let sums: Vec<OnceLock<Sums<F>>> = (0..pairs * chunks).map(|_| OnceLock::new()).collect();
    let task = |task: usize| {
        // The last chunks, which see the most keys, go first.
        let (pair, i) = (task % pairs, chunks - 1 - task / pairs);
        let (batch, group) = (pair / sizes.groups, pair % sizes.groups);
        let blocks = chunk(sizes.queries.div_ceil(QUERIES), chunks, i);
        let part = dispatch_of::<C, _>(Chunk { backward, batch, group, blocks, cells: PhantomData::<C> });
        match chunks {
            1 => dispatch(Finish { backward, sums: &[&part], batch, group, keys: 0..sizes.keys }),
            _ => drop(sums[pair * chunks + i].set(part)),
        }
    };
    match sizes.is_small() {
        true => (0..pairs * chunks).for_each(task),
        false => pool.run(pairs * chunks, task),
    }
    if chunks > 1 {
        let (count, per_block) = blocks(sizes.keys, 2 * chunks * sizes.width);
        pool.run(pairs * count, |task| {
            let (pair, block) = (task / count, task % count);
            let parts: Vec<&Sums<F>> =
                sums[pair * chunks..(pair + 1) * chunks].iter().filter_map(OnceLock::get).collect();
            let keys = block * per_block..sizes.keys.min((block + 1) * per_block);
            let (batch, group) = (pair / sizes.groups, pair % sizes.groups);
            dispatch(Finish { backward, sums: &parts, batch, group, keys });
        });
    }
}

/// The end of a range of keys of a key head: d_k and d_v from the sums of the chunks, in order.
struct Finish<'a, F, S> {
    backward: &'a Backward<'a, F, S>,
    sums: &'a [&'a Sums<F>],
    batch: usize,
    group: usize,
    keys: Range<usize>,
}

impl<F: Float + Element, S: Stored<F>> Kernel for Finish<'_, F, S> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Finish { backward, sums, batch, group, keys } = self;
        let width = backward.sizes.width;
        let (mut d_k, mut d_v) = (vec![F::ZERO; width], vec![F::ZERO; width]);
        for key in keys {
            d_k.fill(F::ZERO);
            d_v.fill(F::ZERO);
            for part in sums {
                let row = key * part.pitch..key * part.pitch + width;
                // A chunk that does not see the key has no row for it.
                let (Some(k), Some(v)) = (part.d_k.get(row.clone()), part.d_v.get(row)) else { continue };
                d_k.iter_mut().zip(k).for_each(|(sum, x)| *sum += *x);
                d_v.iter_mut().zip(v).for_each(|(sum, x)| *sum += *x);
            }
            // SAFETY: the keys of this head belong to this task.
            unsafe {
                backward.d_k.put(isa, [batch, key, group], &d_k, backward.scale);
                backward.d_v.put(isa, [batch, key, group], &d_v, F::ONE);
            }
        }
    }
}

/// A task: query blocks of the heads that share a key head.
struct Chunk<'a, F: Float, C: Cell<F>> {
    backward: &'a Backward<'a, F, C::Stored>,
    batch: usize,
    group: usize,
    blocks: Range<usize>,
    cells: PhantomData<C>,
}

impl<F: Float + Element, C: Cell<F, Stored: Element>> Kernel for Chunk<'_, F, C> {
    type Output = Sums<F>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Sums<F> {
        match const { panel::<F, I>() } {
            4 => self.sums::<I, 4>(isa),
            8 => self.sums::<I, 8>(isa),
            16 => self.sums::<I, 16>(isa),
            _ => self.sums::<I, 32>(isa),
        }
    }
}

/// What a task holds of a block of queries.
struct Queries<F> {
    range: Range<usize>,
    /// q times its part of the scale and d_out, in transposed panels [cells of D, N].
    q_t: Aligned<F>,
    d_out_t: Aligned<F>,
    /// q and d_out, joined along the queries, [cells of QUERIES, pitch].
    q: Aligned<F>,
    d_out: Aligned<F>,
    minus_lse: [F; QUERIES],
    /// `-delta`, where the products of d_p start.
    minus_delta: [F; QUERIES],
    /// [QUERIES, pitch], before the scale.
    d_q: Aligned<F>,
    /// A row of d_out and one of out.
    rows: [Vec<F>; 2],
}

/// What a task holds of a block of keys, and p and ds, transposed, [KEYS, QUERIES].
struct Keys<F> {
    /// Rows of cells, `pitch` apart.
    k: Aligned<F>,
    v: Aligned<F>,
    /// k, joined along the keys, [cells of KEYS, pitch].
    k_joined: Aligned<F>,
    p: Aligned<F>,
    ds: Aligned<F>,
    /// A panel of ds, joined along the keys.
    ds_joined: Aligned<F>,
}

impl<F: Float> Queries<F> {
    fn new(width: usize, pitch: usize) -> Self {
        let [q_t, d_out_t] = [0, 1].map(|_| Aligned::zeros(QUERIES * width));
        let [q, d_out, d_q] = [0, 1, 2].map(|_| Aligned::zeros(QUERIES * pitch));
        let (none, rows) = ([F::ZERO; QUERIES], [vec![F::ZERO; width], vec![F::ZERO; width]]);
        Queries { range: 0..0, q_t, d_out_t, q, d_out, minus_lse: none, minus_delta: none, d_q, rows }
    }
}

impl<F: Float + Element, C: Cell<F, Stored: Element>> Chunk<'_, F, C> {
    #[inline(always)]
    fn sums<I: Isa, const N: usize>(self, isa: I) -> Sums<F> {
        let (sizes, group) = (&self.backward.sizes, self.group);
        let (width, pitch) = (sizes.width, sizes.width.next_multiple_of(N));
        let seen = if self.blocks.is_empty() {
            0
        } else {
            sizes.visible(sizes.query_block(self.blocks.end - 1, QUERIES).end - 1)
        };
        let mut sums = Sums { pitch, d_k: Aligned::zeros(seen * pitch), d_v: Aligned::zeros(seen * pitch) };
        let mut queries = Queries::new(width, pitch);
        let [k, v] = [0, 1].map(|_| Aligned::zeros(KEYS * pitch));
        let [p, ds] = [0, 1].map(|_| Aligned::zeros(KEYS * QUERIES));
        let [k_joined, ds_joined] = [pitch, N].map(|columns| Aligned::zeros(joined_len::<F, C>(columns)));
        let mut keys = Keys { k, v, k_joined, p, ds, ds_joined };
        for head in group * sizes.per_group()..(group + 1) * sizes.per_group() {
            for block in self.blocks.clone() {
                self.load::<I, N>(isa, head, sizes.query_block(block, QUERIES), pitch, &mut queries);
                self.block::<I, N>(isa, pitch, &mut queries, &mut keys, &mut sums);
                for (t, row) in queries.range.clone().zip(queries.d_q.chunks_exact(pitch.max(1))) {
                    // SAFETY: these queries of this head belong to this task.
                    unsafe { self.backward.d_q.put(isa, [self.batch, t, head], &row[..width], self.backward.scale) };
                }
            }
        }
        sums
    }

    /// Loads a block of queries.
    #[inline(always)]
    fn load<I: Isa, const N: usize>(
        &self,
        isa: I,
        head: usize,
        range: Range<usize>,
        pitch: usize,
        to: &mut Queries<F>,
    ) {
        let Backward { q, out, d_out, lse, scale, .. } = self.backward;
        let [q, out, d_out] = [q, out, d_out].map(|view| Head::new(view, self.batch, head));
        let (in_q, _) = split_scale::<F, C>(*scale);
        q.transpose::<F, C, N>(range.clone(), in_q, &mut to.q_t);
        d_out.transpose::<F, C, N>(range.clone(), F::ONE, &mut to.d_out_t);
        if range.len() < QUERIES {
            to.q.fill(F::ZERO);
            to.d_out.fill(F::ZERO);
        }
        q.join_rows::<F, C>(range.clone(), &mut to.q, pitch);
        d_out.join_rows::<F, C>(range.clone(), &mut to.d_out, pitch);
        // Queries that are not there have p = e^-inf = 0.
        to.minus_lse.fill(F::NEG_INFINITY);
        to.minus_delta.fill(F::ZERO);
        let first = lse_offset(lse.layout(), self.batch, head);
        assert!(range.end <= self.backward.sizes.queries);
        for (i, t) in range.clone().enumerate() {
            // SAFETY: an element of the view.
            to.minus_lse[i] = -unsafe { *lse.at(first + t) };
            for (to, row) in to.rows.iter_mut().zip([d_out.row(t), out.row(t)]) {
                to.iter_mut().zip(row).for_each(|(to, x)| *to = x.wide());
            }
            to.minus_delta[i] = -dot(isa, &to.rows[0], &to.rows[1]);
        }
        to.d_q.fill(F::ZERO);
        to.range = range;
    }

    /// A block of queries against all keys it sees.
    #[inline(always)]
    fn block<I: Isa, const N: usize>(
        &self,
        isa: I,
        pitch: usize,
        queries: &mut Queries<F>,
        keys: &mut Keys<F>,
        sums: &mut Sums<F>,
    ) {
        let sizes = &self.backward.sizes;
        let [k, v] = [&self.backward.k, &self.backward.v].map(|view| Head::new(view, self.batch, self.group));
        let panels = queries.range.len().div_ceil(N);
        let end = sizes.visible(queries.range.end - 1);
        for first in (0..end).step_by(KEYS) {
            let count = KEYS.min(end - first);
            k.copy_rows::<F, C>(first..first + count, &mut keys.k, pitch);
            v.copy_rows::<F, C>(first..first + count, &mut keys.v, pitch);
            if C::VALUES > 1 {
                k.join_rows::<F, C>(first..first + count, &mut keys.k_joined, pitch);
            }
            for panel in 0..panels {
                let start = queries.range.start + panel * N;
                let seen = sizes.seen(&(start..start + N), first).min(count);
                self.scores::<I, N>(isa, [first, start, seen, count], pitch, panel, queries, keys);
                let Keys { k, k_joined, ds, ds_joined, .. } = &mut *keys;
                let k = if C::VALUES > 1 { k_joined } else { k };
                let (values, step) =
                    joined::<F, C, I, N>(isa, seen, (&ds[panel * N..], QUERIES), (&mut ds_joined[..], N));
                let d_q = &mut queries.d_q[panel * N * pitch..(panel + 1) * N * pitch];
                let (left, depth) = (Left { values, row: 1, step }, seen.div_ceil(C::VALUES));
                add_product::<F, C, I, N>(isa, [N, depth, pitch], left, (k, pitch), (d_q, pitch));
            }
            for rows in [&mut keys.p, &mut keys.ds] {
                for row in rows.chunks_exact_mut(QUERIES).take(count) {
                    narrow_row::<F, C, I, N>(isa, &mut row[..panels * N]);
                }
            }
            // On the diagonal, later keys are seen by later panels only.
            let diagonal = first + count > sizes.visible(queries.range.start);
            let rows = if diagonal { 2 * ROWS } else { KEYS };
            for row in (0..count).step_by(rows) {
                let blind = (first + row + 1).saturating_sub(sizes.visible(queries.range.start)) / N * N;
                let blind = blind / C::VALUES;
                let shape = [rows.min(count - row), panels * N / C::VALUES - blind, pitch];
                let at = row * QUERIES + blind;
                let to = (first + row) * pitch;
                let left = Left { values: &keys.p[at..], row: QUERIES, step: 1 };
                let right = (&queries.d_out[blind * pitch..], pitch);
                add_product::<F, C, I, N>(isa, shape, left, right, (&mut sums.d_v[to..], pitch));
                let left = Left { values: &keys.ds[at..], row: QUERIES, step: 1 };
                let right = (&queries.q[blind * pitch..], pitch);
                add_product::<F, C, I, N>(isa, shape, left, right, (&mut sums.d_k[to..], pitch));
            }
        }
    }

    /// p and ds of a panel of queries for `count` keys from `first` on, of which the panel sees `seen`; zeros where it sees none.
    #[inline(always)]
    fn scores<I: Isa, const N: usize>(
        &self,
        isa: I,
        [first, start, seen, count]: [usize; 4],
        pitch: usize,
        panel: usize,
        queries: &Queries<F>,
        keys: &mut Keys<F>,
    ) {
        let sizes = &self.backward.sizes;
        let (cells, columns) = (sizes.width.div_ceil(C::VALUES), panel * N..(panel + 1) * N);
        let (_, in_scores) = split_scale::<F, C>(self.backward.scale);
        let [minus_lse, minus_delta] = [&queries.minus_lse, &queries.minus_delta]
            .map(|values| values[columns.clone()].first_chunk::<N>().expect("a panel"));
        for j in 0..count {
            let row = j * QUERIES + columns.start..j * QUERIES + columns.end;
            keys.p[row.clone()].fill(F::ZERO);
            match j < seen {
                true => keys.ds[row].copy_from_slice(minus_delta),
                false => keys.ds[row].fill(F::ZERO),
            }
        }
        let transposed = panel * N * cells..(panel + 1) * N * cells;
        let left = Left { values: &keys.k, row: pitch, step: 1 };
        let p = &mut keys.p[columns.start..];
        let right = (&queries.q_t[transposed.clone()], N);
        add_product::<F, C, I, N>(isa, [seen, cells, N], left, right, (p, QUERIES));
        mask::<F, N>((p, QUERIES), seen, sizes, first, start);
        let left = Left { values: &keys.v, row: pitch, step: 1 };
        let ds = &mut keys.ds[columns.start..];
        add_product::<F, C, I, N>(isa, [seen, cells, N], left, (&queries.d_out_t[transposed], N), (ds, QUERIES));
        for (p, ds) in p.chunks_mut(QUERIES).zip(ds.chunks_mut(QUERIES)).take(seen) {
            let (Some(p), Some(ds)) = (p.first_chunk_mut::<N>(), ds.first_chunk_mut::<N>()) else { continue };
            for i in 0..N {
                p[i] = F::fma(isa, p[i], in_scores, minus_lse[i]).exp_flushed(isa);
                ds[i] = p[i] * ds[i];
            }
        }
    }
}
