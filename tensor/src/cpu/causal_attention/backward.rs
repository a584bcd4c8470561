//! The backward pass. With `p = e^(s - lse)` and `ds = p (d_out v^T - delta)` of a block recomputed: `d_v += p^T d_out`, `d_k += ds^T q`,
//! `d_q += ds k`, `delta = rowsum(d_out * out)`; five products a block, the scale applied to q on the way in and to d_q and d_k on the way out.
//!
//! A task is a chunk of the query blocks of all heads that share a key head: it owns their d_q and sums d_k and d_v over them in
//! order. One chunk where there are (batch, key head) pairs enough; where there are few, several, whose sums are then added in
//! order. How many is decided by the shape alone.

use std::marker::PhantomData;
use std::ops::Range;

use super::factors::Head;
use super::output::Output;
use super::product::{Left, Start, product, rows};
use super::{KEYS, Panel, Sizes, dispatch_of, in_pairs, lse_offset, mask, panel, split_scale};
use crate::cpu::access::{Access, View};
use crate::cpu::buffer::{Buffer, OWN, Parts, SHARED, in_parts};
use crate::cpu::cells::{Cell, Pairs, Wide};
use crate::cpu::isa::{Isa, Kernel};
use crate::cpu::math::{Float, dot};
use crate::cpu::parallel::{Pool, blocks};
use crate::cpu::stored::{Stored, with_stored};
use crate::cpu::with_float;
use crate::{Destination, Element, Result, Tensor};

/// Queries of a block: a multiple of every panel.
const QUERIES: usize = 128;
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

/// Query blocks of chunk `i` of `chunks`, such that chunks hold about equally many scores.
fn chunk(query_blocks: usize, chunks: usize, i: usize) -> Range<usize> {
    let cut = |i: usize| (query_blocks as f64 * (i as f64 / chunks as f64).sqrt()).round() as usize;
    cut(i)..cut(i + 1)
}

fn run<F: Float + Element, C: Cell<F, Stored: Element>>(pool: &Pool, backward: &Backward<F, C::Stored>) {
    let sizes = &backward.sizes;
    let pairs = sizes.batch * sizes.groups;
    let query_blocks = sizes.queries.div_ceil(QUERIES);
    let chunks = TASKS.div_ceil(pairs.max(1)).min(query_blocks).max(1);
    let pitch = sizes.width.next_multiple_of(dispatch_of::<C, _>(Panel(PhantomData::<F>)));
    // How many keys a chunk sees.
    let seen = |chunk: &Range<usize>| match chunk.is_empty() {
        true => 0,
        false => sizes.visible(sizes.query_block(chunk.end - 1, QUERIES).end - 1),
    };
    // Where chunks leave their sums; one alone has a place of its own.
    let len = 2 * sizes.keys * pitch;
    let mut shared = Buffer::<F>::take(&SHARED, if chunks > 1 { pairs * chunks * len } else { 0 });
    let places = Parts::of(shared.values());
    // The last chunks, which see the most keys, go first.
    let at = |pair: usize, i: usize| (chunks - 1 - i) * pairs + pair;
    let task = |task: usize| {
        let (pair, i) = (task % pairs, chunks - 1 - task / pairs);
        let (batch, group) = (pair / sizes.groups, pair % sizes.groups);
        let blocks = chunk(query_blocks, chunks, i);
        // SAFETY: the place of this chunk; the buffer has one for each.
        let sums = (chunks > 1).then(|| unsafe { std::slice::from_raw_parts_mut(places.at(task * len), len) });
        let seen = seen(&blocks);
        dispatch_of::<C, _>(Chunk { backward, batch, group, blocks, seen, pitch, sums, cells: PhantomData::<C> });
    };
    match sizes.is_small() {
        true => (0..pairs * chunks).for_each(task),
        false => pool.run(pairs * chunks, task),
    }
    if chunks > 1 {
        let (count, per_block) = blocks(sizes.keys, 2 * chunks * sizes.width);
        let values = &*shared.values();
        pool.run(pairs * count, |task| {
            let (pair, block) = (task / count, task % count);
            let sums = (0..chunks).map(|i| {
                let seen = seen(&chunk(query_blocks, chunks, i)) * pitch;
                [0, len / 2].map(|half| &values[at(pair, i) * len + half..][..seen])
            });
            let sums: Vec<_> = sums.collect();
            let keys = block * per_block..sizes.keys.min((block + 1) * per_block);
            let (batch, group) = (pair / sizes.groups, pair % sizes.groups);
            dispatch_of::<C, _>(Finish { backward, sums: &sums, pitch, batch, group, keys });
        });
    }
    shared.give_back(&SHARED);
}

/// The end of a range of keys of a key head: d_k and d_v from the sums of the chunks, in order.
struct Finish<'a, F, S> {
    backward: &'a Backward<'a, F, S>,
    /// Those of d_k (before the scale) and of d_v, for the keys that a chunk sees; rows `pitch` apart.
    sums: &'a [[&'a [F]; 2]],
    pitch: usize,
    batch: usize,
    group: usize,
    keys: Range<usize>,
}

impl<F: Float + Element, S: Stored<F>> Kernel for Finish<'_, F, S> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Finish { backward, sums, pitch, batch, group, keys } = self;
        let width = backward.sizes.width;
        let mut sum = vec![F::ZERO; width];
        for key in keys {
            let row = key * pitch..key * pitch + width;
            for (i, (to, factor)) in [(&backward.d_k, backward.scale), (&backward.d_v, F::ONE)].into_iter().enumerate()
            {
                let only = if let [part] = sums { part[i].get(row.clone()) } else { None };
                let x = match only {
                    Some(x) => x,
                    None => {
                        sum.fill(F::ZERO);
                        for part in sums {
                            // A chunk that does not see the key has no row for it.
                            let Some(x) = part[i].get(row.clone()) else { continue };
                            sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += *x);
                        }
                        &sum
                    }
                };
                to.ask([batch, key, group]);
                // SAFETY: the keys of this head belong to this task.
                unsafe { to.put(isa, [batch, key, group], x, factor) };
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
    /// Keys that the last of the blocks sees.
    seen: usize,
    /// How far apart the rows of the sums are.
    pitch: usize,
    /// Where to leave the sums of d_k, and those of d_v in its second half, if they are not all that there is to d_k and d_v.
    sums: Option<&'a mut [F]>,
    cells: PhantomData<C>,
}

impl<F: Float + Element, C: Cell<F, Stored: Element>> Kernel for Chunk<'_, F, C> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match const { panel::<F, I>() } {
            4 => self.gradients::<I, 4>(isa),
            8 => self.gradients::<I, 8>(isa),
            16 => self.gradients::<I, 16>(isa),
            _ => self.gradients::<I, 32>(isa),
        }
    }
}

/// What a task holds of a block of queries.
struct Queries<'a, F> {
    range: Range<usize>,
    /// q times its part of the scale and d_out, in transposed panels [cells of D, N].
    q_t: &'a mut [F],
    d_out_t: &'a mut [F],
    /// q and d_out, joined along the queries, [cells of QUERIES, pitch].
    q: &'a mut [F],
    d_out: &'a mut [F],
    minus_lse: [F; QUERIES],
    /// `-delta`, where the products of d_p start.
    minus_delta: [F; QUERIES],
    /// [QUERIES, pitch], before the scale.
    d_q: &'a mut [F],
    /// A row of d_out and one of out.
    rows: [&'a mut [F]; 2],
}

/// What a task holds of a block of keys.
struct Keys<'a, F> {
    /// Rows of cells.
    k: &'a mut [F],
    v: &'a mut [F],
    /// k, joined along the keys, [cells of KEYS, pitch]; not used where a cell is one value.
    k_joined: &'a mut [F],
    /// p and ds, transposed, in cells along the queries: [KEYS, QUERIES], of which the beginning of each row is used.
    p: &'a mut [F],
    ds: &'a mut [F],
    /// A panel of ds in cells along the keys, [cells of KEYS, N].
    ds_joined: &'a mut [F],
}

/// Sums of d_k (before the scale) and d_v.
struct Sums<'a, F> {
    d_k: &'a mut [F],
    d_v: &'a mut [F],
    /// Keys whose rows hold something.
    begun: usize,
}

impl<F: Float + Element, C: Cell<F, Stored: Element>> Chunk<'_, F, C> {
    #[inline(always)]
    fn gradients<I: Isa, const N: usize>(mut self, isa: I) {
        let (sizes, pitch) = (&self.backward.sizes, self.pitch);
        let (of_queries, of_keys, scores) = (QUERIES * pitch, KEYS * pitch, KEYS * QUERIES);
        let joined = if C::VALUES > 1 { KEYS.div_ceil(C::VALUES) } else { 0 };
        let own = if self.sums.is_none() { self.seen * pitch } else { 0 };
        let lengths = [
            [of_queries; 5],
            [of_keys, of_keys, joined * pitch, scores, scores],
            [joined * N, sizes.width, sizes.width, own, own],
        ];
        let lengths: &[usize; 15] = lengths.as_flattened().first_chunk().expect("fifteen");
        let mut buffer = Buffer::<F>::take(&OWN, in_parts::<F, _>(*lengths));
        let [q_t, d_out_t, q, d_out, d_q, k, v, k_joined, p, ds, ds_joined, row, other_row, d_k, d_v] =
            buffer.parts(*lengths);
        let none = [F::ZERO; QUERIES];
        let rows = [row, other_row];
        let mut queries =
            Queries { range: 0..0, q_t, d_out_t, q, d_out, minus_lse: none, minus_delta: none, d_q, rows };
        let mut keys = Keys { k, v, k_joined, p, ds, ds_joined };
        let all = self.sums.is_none();
        let [d_k, d_v] = match self.sums.take() {
            Some(sums) => sums.split_at_mut(sums.len() / 2).into(),
            None => [d_k, d_v],
        };
        let mut sums = Sums { d_k, d_v, begun: 0 };
        for head in self.group * sizes.per_group()..(self.group + 1) * sizes.per_group() {
            for block in self.blocks.clone() {
                self.load::<I, N>(isa, head, sizes.query_block(block, QUERIES), &mut queries);
                self.block::<I, N>(isa, &mut queries, &mut keys, &mut sums);
                for (t, row) in queries.range.clone().zip(queries.d_q.chunks_exact(pitch.max(1))) {
                    // SAFETY: these queries of this head belong to this task.
                    unsafe {
                        let at = [self.batch, t, head];
                        self.backward.d_q.ask(at);
                        self.backward.d_q.put(isa, at, &row[..sizes.width], self.backward.scale);
                    }
                }
            }
        }
        if all {
            let (Chunk { backward, batch, group, .. }, sums) = (self, [[&*sums.d_k, &*sums.d_v]]);
            let keys = 0..sizes.keys;
            Finish { backward, sums: &sums, pitch, batch, group, keys }.run(isa);
        }
        buffer.give_back(&OWN);
    }

    /// Loads a block of queries.
    #[inline(always)]
    fn load<I: Isa, const N: usize>(&self, isa: I, head: usize, range: Range<usize>, to: &mut Queries<F>) {
        let Backward { q, out, d_out, lse, scale, .. } = self.backward;
        let [q, out, d_out] = [q, out, d_out].map(|view| Head::new(view, self.batch, head));
        let (in_q, _) = split_scale::<F, C>(*scale);
        q.transpose::<F, C, N>(range.clone(), in_q, to.q_t);
        d_out.transpose::<F, C, N>(range.clone(), F::ONE, to.d_out_t);
        if range.len() < QUERIES {
            to.q.fill(F::ZERO);
            to.d_out.fill(F::ZERO);
        }
        q.join_rows::<F, C, I>(isa, range.clone(), to.q, self.pitch);
        d_out.join_rows::<F, C, I>(isa, range.clone(), to.d_out, self.pitch);
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
            to.minus_delta[i] = -dot(isa, to.rows[0], to.rows[1]);
        }
        to.range = range;
    }

    /// A block of queries against all keys it sees.
    #[inline(always)]
    fn block<I: Isa, const N: usize>(&self, isa: I, queries: &mut Queries<F>, keys: &mut Keys<F>, sums: &mut Sums<F>) {
        let (sizes, pitch) = (&self.backward.sizes, self.pitch);
        let [k, v] = [&self.backward.k, &self.backward.v].map(|view| Head::new(view, self.batch, self.group));
        let panels = queries.range.len().div_ceil(N);
        let end = sizes.visible(queries.range.end - 1);
        if sums.begun < end {
            let fresh = sums.begun * pitch..end * pitch;
            sums.d_k[fresh.clone()].fill(F::ZERO);
            sums.d_v[fresh].fill(F::ZERO);
            sums.begun = end;
        }
        for first in (0..end).step_by(KEYS) {
            let count = KEYS.min(end - first);
            k.copy_rows::<F, C>(first..first + count, keys.k, pitch);
            v.copy_rows::<F, C>(first..first + count, keys.v, pitch);
            if C::VALUES > 1 {
                k.join_rows::<F, C, I>(isa, first..first + count, keys.k_joined, pitch);
            }
            for panel in 0..panels {
                let start = queries.range.start + panel * N;
                let seen = sizes.seen(&(start..start + N), first).min(count);
                self.scores::<I, N>(isa, [first, start, seen, count], panel, queries, keys);
                // Every query sees the first keys.
                let from = if first == 0 { Start::Zeros } else { Start::Sums };
                let (left, k) = match C::VALUES > 1 {
                    true => (Left { values: keys.ds_joined, row: 1, step: N }, &*keys.k_joined),
                    false => (Left { values: &keys.ds[panel * N..], row: 1, step: QUERIES }, &*keys.k),
                };
                let d_q = &mut queries.d_q[panel * N * pitch..(panel + 1) * N * pitch];
                let shape = [N, seen.div_ceil(C::VALUES), pitch];
                product::<F, C, I, N>(isa, shape, from, left, (k, pitch), (d_q, pitch));
            }
            // On the diagonal, later keys are seen by later panels only.
            let diagonal = first + count > sizes.visible(queries.range.start);
            let rows = if diagonal { 2 * rows::<I>() } else { KEYS };
            for row in (0..count).step_by(rows) {
                let blind = (first + row + 1).saturating_sub(sizes.visible(queries.range.start)) / N * N;
                let blind = blind / C::VALUES;
                let shape = [rows.min(count - row), panels * N / C::VALUES - blind, pitch];
                let at = row * QUERIES + blind;
                let to = (first + row) * pitch;
                let left = Left { values: &keys.p[at..], row: QUERIES, step: 1 };
                let right = (&queries.d_out[blind * pitch..], pitch);
                product::<F, C, I, N>(isa, shape, Start::Sums, left, right, (&mut sums.d_v[to..], pitch));
                let left = Left { values: &keys.ds[at..], row: QUERIES, step: 1 };
                let right = (&queries.q[blind * pitch..], pitch);
                product::<F, C, I, N>(isa, shape, Start::Sums, left, right, (&mut sums.d_k[to..], pitch));
            }
        }
    }

    /// p and ds of a panel of queries for `count` keys from `first` on, of which the panel sees `seen`; zeros where it sees none.
    #[inline(always)]
    fn scores<I: Isa, const N: usize>(
        &self,
        isa: I,
        [first, start, seen, count]: [usize; 4],
        panel: usize,
        queries: &Queries<F>,
        keys: &mut Keys<F>,
    ) {
        let (sizes, pitch) = (&self.backward.sizes, self.pitch);
        let (cells, column) = (sizes.width.div_ceil(C::VALUES), panel * N);
        let (_, in_scores) = split_scale::<F, C>(self.backward.scale);
        let [minus_lse, minus_delta] = [&queries.minus_lse, &queries.minus_delta]
            .map(|values| values[column..].first_chunk::<N>().expect("a panel"));
        let (shape, transposed) = ([seen, cells, N], panel * N * cells..(panel + 1) * N * cells);
        let Keys { k, v, p, ds, ds_joined, .. } = keys;
        let left = Left { values: k, row: pitch, step: 1 };
        let right = (&queries.q_t[transposed.clone()], N);
        product::<F, C, I, N>(isa, shape, Start::Zeros, left, right, (&mut p[column..], QUERIES));
        mask::<F, N>((&mut p[column..], QUERIES), seen, sizes, first, start);
        let left = Left { values: v, row: pitch, step: 1 };
        let right = (&queries.d_out_t[transposed], N);
        product::<F, C, I, N>(isa, shape, Start::Row(minus_delta), left, right, (&mut ds[column..], QUERIES));
        // Cells of a row stand where values of earlier panels did.
        let of = |j: usize| (j * QUERIES + column, j * QUERIES + column / C::VALUES);
        let mut pairs = ds_joined.as_chunks_mut::<N>().0.iter_mut();
        for j in (0..seen).step_by(C::VALUES) {
            let mut rows = [[F::ZERO; N]; 2];
            for (i, d_scores) in rows.iter_mut().enumerate().take(C::VALUES.min(seen - j)) {
                let (values, cells) = of(j + i);
                let mut scores = *p[values..].first_chunk::<N>().expect("a panel");
                *d_scores = *ds[values..].first_chunk::<N>().expect("a panel");
                for i in 0..N {
                    scores[i] = F::fma(isa, scores[i], in_scores, minus_lse[i]).exp_flushed(isa);
                    d_scores[i] *= scores[i];
                }
                C::round_neighbours(isa, &scores, &mut p[cells..]);
                C::round_neighbours(isa, d_scores, &mut ds[cells..]);
            }
            if let Some(to) = pairs.next() {
                C::round_join(isa, &rows[0], &rows[1], to);
            }
        }
        for j in seen..count {
            let (_, cells) = of(j);
            p[cells..][..N / C::VALUES].fill(F::ZERO);
            ds[cells..][..N / C::VALUES].fill(F::ZERO);
        }
    }
}
