//! Matrix products, out [m, n] = alpha a [m, k] b [k, n] (+ addend [m, n]), with any strides, in f32 and f64; each matrix may be stored in bf16.
//!
//! The loops are those of Goto and van de Geijn ("Anatomy of High-Performance Matrix Multiplication", 2008): b is packed once, in
//! panels as wide as a register tile, by all threads; a task then packs rows of a and runs them past the panels, [`DEPTH`] values of k
//! at a time. Where a has few rows, which use each value of b only a few times, every task packs its own panels of b just before it uses them. A factor that stands in
//! memory as tiles read it is not packed (`gemm/factors.rs`): rows or columns of a, rows of b. bf16 is widened while it is packed, unless the processor multiplies it
//! as it is: then panels hold pairs of neighbours along k. A bf16 output is summed in f32 and rounded once. The work is cut by shape alone and sums over k keep their
//! order, so the bits do not depend on the number of threads.

mod ahead;
mod factors;
mod few;
mod kernel;
mod pack;
mod plan;

use super::buffer::{Buffer, OWN, Parts, SHARED};
use super::isa::{Path, path};
use super::math::{Float, round};
use super::parallel::{Pool, blocks};
use super::stored::Stored;
use super::stream::{fence, is_large};
use ahead::Ahead;
use factors::{Left, Right};
use few::FewRows;
use half::bf16;
use kernel::{Panels, on_tile};
use pack::PackRight;
use plan::Plan;
use std::ops::Range;

/// Most cells along k of a packed panel: a panel of a this deep, and one of b, stay in the first-level cache.
const DEPTH: usize = 384;

/// The first value of a matrix, and the type in which all of them are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Values<F> {
    /// The type that is computed in.
    Wide(*mut F),
    /// Half as wide as f32.
    Bf16(*mut bf16),
}

impl<F> Values<F> {
    /// The address `offset` values further on.
    #[inline(always)]
    fn offset(self, offset: isize) -> Self {
        match self {
            Values::Wide(first) => Values::Wide(first.wrapping_offset(offset)),
            Values::Bf16(first) => Values::Bf16(first.wrapping_offset(offset)),
        }
    }
}

/// A matrix: the value (i, j) stands `i * row_stride + j * col_stride` values from the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<F> {
    pub(crate) values: Values<F>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: isize,
    pub(crate) col_stride: isize,
}

// SAFETY: a description of memory; whoever reads or writes through it promises, at the unsafe call, that this is sound.
unsafe impl<F: Send + Sync> Send for Matrix<F> {}
// SAFETY: as above.
unsafe impl<F: Send + Sync> Sync for Matrix<F> {}

impl<F: Float> Matrix<F> {
    /// The transpose, a view.
    #[inline]
    fn t(self) -> Self {
        let Matrix { values, rows, cols, row_stride, col_stride } = self;
        Matrix { values, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// The matrix `offset` values further on.
    #[inline]
    pub(crate) fn offset(self, offset: usize) -> Self {
        Matrix { values: self.values.offset(offset as isize), ..self }
    }

    /// The address of the value (i, j).
    #[inline(always)]
    fn at(self, i: usize, j: usize) -> Values<F> {
        self.values.offset(i as isize * self.row_stride + j as isize * self.col_stride)
    }

    /// Sets the value (i, j) to `value`, plus that of `addend` if there is one, rounded to the type in which it is stored.
    ///
    /// # Safety
    /// The place lies inside both matrices; it is valid for writes here, and for reads there.
    #[inline(always)]
    unsafe fn put(self, i: usize, j: usize, value: F, addend: Option<Self>) {
        // SAFETY: the caller's promise.
        unsafe {
            let sum = match addend {
                Some(addend) => addend.get(i, j) + value,
                None => value,
            };
            match self.at(i, j) {
                Values::Wide(place) => *place = sum,
                Values::Bf16(place) => *place = bf16::from_bits(round(sum.to_f64() as f32)),
            }
        }
    }

    /// The value (i, j).
    ///
    /// # Safety
    /// The place lies inside the matrix and is valid for reads.
    #[inline(always)]
    unsafe fn get(self, i: usize, j: usize) -> F {
        // SAFETY: the caller's promise.
        unsafe {
            match self.at(i, j) {
                Values::Wide(place) => *place,
                Values::Bf16(place) => (*place).wide(),
            }
        }
    }

    /// Rows `row..row + rows` and columns `col..col + cols`, a view.
    #[inline]
    fn block(self, row: usize, col: usize, rows: usize, cols: usize) -> Self {
        debug_assert!(row + rows <= self.rows && col + cols <= self.cols);
        Matrix { values: self.at(row, col), rows, cols, ..self }
    }
}

/// What a packed panel holds at a place along k.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cells {
    /// A value.
    Values,
    /// Two values in bf16, the first in the lower half of an f32; after the last of an odd number comes a zero.
    Pairs,
}

impl Cells {
    /// Those of a product of matrices stored like `a` and `b`.
    fn of<F>(path: Path, a: &Matrix<F>, b: &Matrix<F>) -> Cells {
        match (&a.values, &b.values) {
            (Values::Bf16(_), Values::Bf16(_)) if path.multiplies_bf16() => Cells::Pairs,
            _ => Cells::Values,
        }
    }

    /// Values of a cell.
    fn values(self) -> usize {
        match self {
            Cells::Values => 1,
            Cells::Pairs => 2,
        }
    }
}

/// The matrices of a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product<F> {
    pub(crate) out: Matrix<F>,
    pub(crate) a: Matrix<F>,
    pub(crate) b: Matrix<F>,
    /// What is added to the product, of the shape and the stored type of `out`: `out` itself, or another matrix, of which rows may be one and the same.
    pub(crate) addend: Option<Matrix<F>>,
}

impl<F: Float> Product<F> {
    /// The same product, all of its matrices transposed.
    fn t(self) -> Self {
        let Product { out, a, b, addend } = self;
        Product { out: out.t(), a: b.t(), b: a.t(), addend: addend.map(Matrix::t) }
    }

    /// A block of the output: of `rows` from `row` on and `cols` from `col` on, with the rows of a, the columns of b and the part of the addend that
    /// make it.
    fn block(self, row: usize, col: usize, rows: usize, cols: usize) -> Self {
        Product {
            out: self.out.block(row, col, rows, cols),
            a: self.a.block(row, 0, rows, self.a.cols),
            b: self.b.block(0, col, self.b.rows, cols),
            addend: self.addend.map(|addend| addend.block(row, col, rows, cols)),
        }
    }
}

/// `out = alpha * a @ b`, plus the addend, for the products `item(0..batch)`, which all have the shapes, the strides, the stored types and the kind
/// of addend of the first; tasks of all of them are spread over the threads of `pool` together. With k = 0 the addend, or zeros. What `out` held is not
/// read unless it is the addend. Same bits for any number of threads.
///
/// # Safety
/// `a`, `b` and the addend are valid for reads and `out` for reads and writes at all their places; no `out` overlaps itself, an
/// input or another `out`, but may be its own addend, and nobody else touches them during the call.
pub(crate) unsafe fn gemm_batched<F: Float>(
    pool: &Pool,
    batch: usize,
    item: impl Fn(usize) -> Product<F> + Sync,
    alpha: F,
) {
    if batch == 0 {
        return;
    }
    let Product { a, b, .. } = item(0);
    // SAFETY: the caller's promise; the path is this processor's.
    unsafe { gemm_on(path(), Cells::of(path(), &a, &b), pool, batch, item, alpha) };
}

/// [`gemm_batched`] with the instructions of `path`, which this processor must have, and panels of `cells`: pairs only of bf16. At least one product.
///
/// # Safety
/// As there.
unsafe fn gemm_on<F: Float>(
    path: Path,
    cells: Cells,
    pool: &Pool,
    batch: usize,
    item: impl Fn(usize) -> Product<F> + Sync,
    alpha: F,
) {
    // Tiles are written row by row: an output whose columns are contiguous is the transpose of one whose rows are; and one with few
    // columns of one with few rows.
    let Matrix { rows, cols, row_stride, col_stride, .. } = item(0).out;
    let turned = if rows.min(cols) <= few::MOST { cols < rows } else { col_stride != 1 && row_stride == 1 };
    let item = |index: usize| {
        let product = item(index);
        if turned { product.t() } else { product }
    };
    let Product { out, a, b, addend } = item(0);
    assert!(
        a.rows == out.rows
            && b.cols == out.cols
            && a.cols == b.rows
            && addend.is_none_or(|addend| (addend.rows, addend.cols) == (out.rows, out.cols)),
        "gemm of [{}, {}] and [{}, {}] into [{}, {}]",
        a.rows,
        a.cols,
        b.rows,
        b.cols,
        out.rows,
        out.cols
    );
    // An output without columns was turned.
    if out.rows == 0 {
        return;
    }
    let narrow = matches!(out.values, Values::Bf16(_));
    let plan = Plan::new::<F>(path, batch, [out.rows, out.cols, a.cols.div_ceil(cells.values())], narrow);
    let work = Gemm { path, cells, plan, item, alpha };
    if a.cols == 0 {
        // SAFETY: the caller's promise.
        unsafe { work.nothing(batch) };
    } else if a.rows <= few::MOST && (b.row_stride == 1 || b.col_stride == 1) {
        // SAFETY: the caller's promise.
        unsafe { work.few_rows(pool, batch) };
    } else if work.plan.shared {
        let in_place = Right::in_place(b, cells, work.plan.nr).is_some();
        let panels = if in_place { 0 } else { work.plan.packed_len() };
        let mut shared = Buffer::take(&SHARED, panels + work.plan.sums_len());
        let (packed, sums) = shared.values().split_at_mut(panels);
        let sums = sums.as_mut_ptr();
        for items in work.plan.groups(batch) {
            for columns in work.plan.chunks() {
                for ks in work.plan.deeps() {
                    let part = Part { items: items.clone(), columns: columns.clone(), ks, sums };
                    if !in_place {
                        // SAFETY: the caller's promise; the buffer has room for a part.
                        unsafe { work.pack(pool, &part, packed) };
                    }
                    // SAFETY: the caller's promise; what is read was packed above, and the sums have the place that the plan asks for.
                    unsafe { work.multiply(pool, &part, (!in_place).then_some(&*packed)) };
                }
            }
        }
        shared.give_back(&SHARED);
    } else {
        let (columns, ks) = (0..work.plan.n, 0..work.plan.blocks());
        let part = Part { items: 0..batch, columns, ks, sums: std::ptr::null_mut() };
        // SAFETY: the caller's promise; no blocks of k are left for another part.
        unsafe { work.multiply(pool, &part, None) };
    }
}

/// What is done between two times of packing.
struct Part<F> {
    /// Products of the batch.
    items: Range<usize>,
    /// Columns of b and out.
    columns: Range<usize>,
    /// Blocks of k.
    ks: Range<usize>,
    /// Where a part leaves the sums of an output in bf16 to the part with the next blocks of k, if the plan has such: row by row, those of `columns`.
    sums: *mut F,
}

// SAFETY: each task reads and writes sums of its own.
unsafe impl<F: Send> Sync for Part<F> {}

impl<F: Float> Part<F> {
    /// The sums that are left to other parts.
    fn sums(&self, rows: usize) -> Matrix<F> {
        let cols = self.columns.len();
        Matrix { values: Values::Wide(self.sums), rows, cols, row_stride: cols as isize, col_stride: 1 }
    }

    /// Where the panels of a block of k stand that begin `col` columns from the first: those of an item together, blocks of k within
    /// it, panels within these.
    fn panels(&self, plan: &Plan, index: usize, k: &Range<usize>, col: usize) -> usize {
        let width = self.columns.len().next_multiple_of(plan.nr);
        let first = plan.block(self.ks.start).start;
        let depth = plan.block(self.ks.end - 1).end - first;
        (index * depth + k.start - first) * width + col * k.len()
    }
}

/// A batch of products under way.
struct Gemm<F, I> {
    path: Path,
    cells: Cells,
    plan: Plan,
    item: I,
    alpha: F,
}

impl<F: Float, I: Fn(usize) -> Product<F> + Sync> Gemm<F, I> {
    /// The products of nothing.
    ///
    /// # Safety
    /// As [`gemm_batched`].
    unsafe fn nothing(&self, batch: usize) {
        for Product { out, addend, .. } in (0..batch).map(&self.item) {
            for place in 0..out.rows * out.cols {
                // SAFETY: the caller's promise.
                unsafe { out.put(place / out.cols, place % out.cols, F::ZERO, addend) };
            }
        }
    }

    /// The values of some cells, of `k` in all.
    fn values(&self, cells: &Range<usize>, k: usize) -> Range<usize> {
        cells.start * self.cells.values()..k.min(cells.end * self.cells.values())
    }

    /// The columns of `a` that block `block` of k is made of.
    fn left(&self, a: Matrix<F>, block: usize) -> Matrix<F> {
        let values = self.values(&self.plan.block(block), a.cols);
        a.block(0, values.start, a.rows, values.len())
    }

    /// Products with a few rows.
    ///
    /// # Safety
    /// As [`gemm_batched`].
    unsafe fn few_rows(&self, pool: &Pool, batch: usize) {
        let Plan { m, n, .. } = self.plan;
        let k = (self.item)(0).a.cols;
        let (across, cols) = blocks(n.div_ceil(few::UNIT), k * few::UNIT);
        let cols = cols * few::UNIT;
        pool.run(batch * across, |task| {
            let col = task % across * cols;
            let Product { out, a, b, addend } = (self.item)(task / across).block(0, col, m, cols.min(n - col));
            let mut rows = Buffer::take(&OWN, m * k);
            for (i, row) in rows.values().chunks_exact_mut(k).enumerate() {
                for (p, value) in row.iter_mut().enumerate() {
                    // SAFETY: (i, p) lies inside a.
                    *value = unsafe { a.get(i, p) };
                }
            }
            on_tile(self.path, FewRows { out, a: rows.values(), b, alpha: self.alpha, addend });
            rows.give_back(&OWN);
        });
    }

    /// Packs the part's b.
    ///
    /// # Safety
    /// The inputs are valid for reads.
    unsafe fn pack(&self, pool: &Pool, part: &Part<F>, packed: &mut [F]) {
        let plan = &self.plan;
        let b = (self.item)(0).b;
        // A task reads in the order of memory: whole rows, or whole columns.
        let (k_step, col_step) = match b.col_stride {
            1 => (blocks(plan.depth, part.columns.len()).1.next_multiple_of(8), part.columns.len()),
            _ => (plan.depth, blocks(part.columns.len().div_ceil(plan.nr), plan.depth * plan.nr).1 * plan.nr),
        };
        let (down, across) = (plan.depth.div_ceil(k_step), part.columns.len().div_ceil(col_step));
        let packed = Parts::of(packed);
        pool.run(part.items.len() * part.ks.len() * down * across, |task| {
            let (index, block) = (task / (part.ks.len() * down * across), task / (down * across) % part.ks.len());
            let (at, col) = (task / across % down * k_step, task % across * col_step);
            let k = plan.block(part.ks.start + block);
            if at >= k.len() {
                return; // the last block has fewer values
            }
            let b = (self.item)(part.items.start + index).b;
            let values = self.values(&(k.start + at..k.end.min(k.start + at + k_step)), b.rows);
            let cols = col_step.min(part.columns.len() - col);
            let b = b.block(values.start, part.columns.start + col, values.len(), cols);
            let to = packed.at(part.panels(plan, index, &k, col));
            on_tile(self.path, PackRight { to, cells: self.cells, depth: k.len(), at, b });
        });
    }

    /// The part's products, by panels that were packed, or that each task packs if it cannot read b in place.
    ///
    /// # Safety
    /// As [`gemm_batched`].
    unsafe fn multiply(&self, pool: &Pool, part: &Part<F>, packed: Option<&[F]>) {
        let plan = &self.plan;
        let (down, across) = (plan.down(), part.columns.len().div_ceil(plan.cols));
        let tasks = part.items.len() * down * across;
        let block = |task: usize| {
            let (index, col) = (task / (down * across), task % across * plan.cols);
            let Range { start: row, end } = plan.task_rows(task / across % down);
            let (rows, cols) = (end - row, plan.cols.min(part.columns.len() - col));
            let product = (self.item)(part.items.start + index);
            (index, row, col, product.block(row, part.columns.start + col, rows, cols))
        };
        pool.run(tasks, |task| {
            let (index, row, col, product) = block(task);
            let Matrix { rows, cols, .. } = product.out;
            // Threads take turns, more or less, and columns of the same rows have them already.
            let next = Some(task + pool.threads()).filter(|next| *next < tasks && next / across != task / across);
            let next = next.map(|next| self.left(block(next).3.a, part.ks.start));
            let packed = packed.map(|packed| move |k: &Range<usize>| &packed[part.panels(plan, index, k, col)..]);
            let sums = plan.leaves_sums.then(|| part.sums(plan.m).block(row, col, rows, cols));
            // SAFETY: the caller's promise, for a part of the output that no other task has.
            unsafe { self.task(product, part.ks.clone(), packed, sums, next) };
        });
    }

    /// A product that makes a block of an output.
    ///
    /// # Safety
    /// As [`gemm_batched`], for the block; `packed` gives panels of `b`, those of the block's columns first; sums that are left to other parts are
    /// valid for reads and writes. `next` is what this thread probably reads after it.
    unsafe fn task<'p>(
        &self,
        Product { out, a, b, addend }: Product<F>,
        ks: Range<usize>,
        packed: Option<impl Fn(&Range<usize>) -> &'p [F]>,
        left_to_others: Option<Matrix<F>>,
        next: Option<Matrix<F>>,
    ) {
        let plan = &self.plan;
        // Panels that a task packs for itself, as many at a time as fit a second-level cache.
        let run = if packed.is_some() { out.cols } else { plan.own_columns() };
        let left_len = out.rows.next_multiple_of(plan.mr) * DEPTH;
        let right_len = if packed.is_some() { 0 } else { run.min(out.cols).next_multiple_of(plan.nr) * plan.depth };
        // An output in bf16 is summed elsewhere until the last block of k.
        let narrow = matches!(out.values, Values::Bf16(_));
        let own_sums = narrow && left_to_others.is_none() && ks.len() > 1;
        let sums_len = if own_sums { out.rows * out.cols } else { 0 };
        let written_once = plan.blocks() == 1 && addend.is_none_or(|addend| addend.values != out.values);
        let past_caches = written_once && is_large(plan.m * plan.n * if narrow { 2 } else { size_of::<F>() });
        let mut buffer = Buffer::take(&OWN, left_len + right_len + sums_len);
        let (left, rest) = buffer.values().split_at_mut(left_len);
        let (right, sums) = rest.split_at_mut(right_len);
        let wide = match left_to_others {
            Some(sums) => sums,
            None if own_sums => {
                let values = Values::Wide(sums.as_mut_ptr());
                Matrix { values, rows: out.rows, cols: out.cols, row_stride: out.cols as isize, col_stride: 1 }
            }
            None => out,
        };
        for block in ks.clone() {
            let k = plan.block(block);
            let values = self.values(&k, a.cols);
            let rows = Left::of(self.path, self.left(a, block), self.cells, plan.mr, left);
            let tiles = out.rows.div_ceil(plan.mr) * out.cols.div_ceil(plan.nr);
            let mut ahead = Ahead::of(if block + 1 < ks.end { Some(self.left(a, block + 1)) } else { next }, tiles);
            let last = block + 1 == plan.blocks();
            let to = if last { out } else { wide };
            // The addend is as the output, and comes with the last block of one in bf16, with the first of another.
            let sums = (k.start > 0).then_some(wide);
            let addend = addend.filter(|_| if narrow { last } else { k.start == 0 });
            for col in (0..out.cols).step_by(run) {
                let cols = run.min(out.cols - col);
                let b = b.block(values.start, col, values.len(), cols);
                let right = match &packed {
                    Some(packed) => Right::packed(packed(&k), k.len(), plan.nr),
                    None => Right::of(self.path, b, self.cells, k.len(), plan.nr, right),
                };
                let block = |matrix: Matrix<F>| matrix.block(0, col, out.rows, cols);
                let (out, sums, addend) = (block(to), sums.map(block), addend.map(block));
                let (cells, depth, alpha, ahead) = (self.cells, k.len(), self.alpha, &mut ahead);
                Panels { out, sums, left: rows, right, cells, depth, alpha, addend, ahead, past_caches }
                    .multiply(self.path);
            }
        }
        if past_caches {
            fence();
        }
        buffer.give_back(&OWN);
    }
}

#[cfg(test)]
mod tests;
