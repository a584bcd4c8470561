//! Matrix products, out [m, n] = alpha a [m, k] b [k, n] (+ out), with any strides, f32 and f64.
//! The output is cut into tiles by shape alone, long sums over k into pieces added in order, and each of them is one
//! single-threaded product, so the bits do not depend on the number of threads. A tile runs in the `gemm` crate; where the crate would take
//! another instruction path than [`path`] (it cannot be told), in [`kernel`].

mod kernel;

use super::isa::{Path, dispatch, path};
use super::math::Float;
use super::parallel::{Pool, blocks};
use kernel::Product;
use std::cell::Cell;

/// A matrix to read: the value (i, j) stands `i * row_stride + j * col_stride` values from `ptr`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MatRef<F> {
    pub(crate) ptr: *const F,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: isize,
    pub(crate) col_stride: isize,
}

/// A matrix to write; no two places may coincide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MatMut<F> {
    pub(crate) ptr: *mut F,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: isize,
    pub(crate) col_stride: isize,
}

// SAFETY: a description of memory; whoever reads through it promises, at the unsafe call, that it is valid.
unsafe impl<F: Send + Sync> Send for MatRef<F> {}
// SAFETY: as above.
unsafe impl<F: Send + Sync> Sync for MatRef<F> {}
// SAFETY: as above, for writes.
unsafe impl<F: Send + Sync> Send for MatMut<F> {}
// SAFETY: as above.
unsafe impl<F: Send + Sync> Sync for MatMut<F> {}

macro_rules! views {
    ($name:ident, $pointer:ty) => {
        impl<F: Float> $name<F> {
            /// A matrix from its parts; strides count values.
            #[inline]
            pub(crate) fn new(ptr: $pointer, rows: usize, cols: usize, row_stride: isize, col_stride: isize) -> Self {
                Self { ptr, rows, cols, row_stride, col_stride }
            }

            /// The transpose, a view.
            #[inline]
            pub(crate) fn t(self) -> Self {
                Self::new(self.ptr, self.cols, self.rows, self.col_stride, self.row_stride)
            }

            /// Rows `row..row + rows` and columns `col..col + cols`, a view.
            #[inline]
            pub(crate) fn block(self, row: usize, col: usize, rows: usize, cols: usize) -> Self {
                debug_assert!(row + rows <= self.rows && col + cols <= self.cols);
                Self::new(self.at(row, col), rows, cols, self.row_stride, self.col_stride)
            }

            /// The address of a value.
            #[inline(always)]
            fn at(self, row: usize, col: usize) -> $pointer {
                self.ptr.wrapping_offset(row as isize * self.row_stride + col as isize * self.col_stride)
            }
        }
    };
}

views!(MatRef, *const F);
views!(MatMut, *mut F);

impl<F: Float> MatRef<F> {
    /// The value at (row, col).
    ///
    /// # Safety
    /// The place lies inside the matrix and is valid for reads.
    #[inline(always)]
    unsafe fn read(self, row: usize, col: usize) -> F {
        // SAFETY: the caller's promise.
        unsafe { *self.at(row, col) }
    }
}

/// How a batch of products is cut into tasks: tiles of the output, and pieces of k that are summed in order.
#[derive(Clone, Copy, Debug)]
struct Cut {
    rows: usize,
    cols: usize,
    depth: usize,
}

impl Cut {
    /// Largest tile: what is packed for it fits the second-level cache, and packing is a small share of the work.
    const SIDE_MOST: usize = 512;
    /// Rows of a tile where larger ones would be fewer than [`Cut::ENOUGH`].
    const ROWS: usize = 256;
    /// Smallest side of a tile that is cut further, and smallest piece of k.
    const SIDE_LEAST: usize = 64;
    const DEPTH: usize = 512;
    /// Below the first number of tasks a product is cut further, towards the second, ...
    const FEW: usize = 8;
    const ENOUGH: usize = 16;
    /// ... unless a task would have fewer multiplications than this, some 5 microseconds.
    const WORK: usize = 1 << 18;

    /// The cut for `batch` products of [m, k] and [k, n], by shape alone. Small outputs of a long sum, such as weight
    /// gradients, are cut along k, where tiles lose less than by being smaller.
    fn new(batch: usize, m: usize, n: usize, k: usize) -> Cut {
        let mut cut = Cut { rows: even(m, Cut::SIDE_MOST), cols: even(n, Cut::SIDE_MOST), depth: k };
        let work = batch.saturating_mul(m).saturating_mul(n).saturating_mul(k);
        let tasks = |cut: &Cut| batch * cut.tiles(m, n) * cut.pieces(k);
        if tasks(&cut) < Cut::ENOUGH {
            cut.rows = even(m, Cut::ROWS);
        }
        if k > 2 * m.max(n) && tasks(&cut) < Cut::FEW.min(work / Cut::WORK) {
            let pieces = Cut::ENOUGH.min(work / Cut::WORK).div_ceil(tasks(&cut)).min(k / Cut::DEPTH).max(1);
            cut.depth = even(k, k.div_ceil(pieces));
        }
        while tasks(&cut) < Cut::FEW.min(work / Cut::WORK) && cut.rows.max(cut.cols) > Cut::SIDE_LEAST {
            if cut.rows > cut.cols {
                cut.rows = even(m, cut.rows / 2);
            } else {
                cut.cols = even(n, cut.cols / 2);
            }
        }
        cut
    }

    /// Tiles of one output of m x n.
    fn tiles(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.rows) * n.div_ceil(self.cols)
    }

    /// Pieces of a sum over k; one if it is empty.
    fn pieces(&self, k: usize) -> usize {
        k.div_ceil(self.depth.max(1)).max(1)
    }
}

/// The length of the parts when `length` is cut into as few equal parts of at most `most` as it takes; a multiple of
/// 16 unless `most` is less.
fn even(length: usize, most: usize) -> usize {
    length.div_ceil(length.div_ceil(most).max(1)).next_multiple_of(16).min(most).max(1)
}

/// `out = alpha * a @ b`, plus `out` if `accumulate`, for the `(out, a, b)` of `item(0..batch)`, which all have the shapes
/// of the first; the tiles of all of them are spread over the threads of `pool` together. With k = 0 zeros (`out` stays
/// if `accumulate`). Without `accumulate` what `out` held is not read. Same bits for any number of threads.
///
/// # Safety
/// `a` and `b` are valid for reads and `out` for reads and writes at all their places; no `out` overlaps itself, an
/// input or another `out`, and nobody else touches them during the call.
pub(crate) unsafe fn gemm_batched<F: Float>(
    pool: &Pool,
    batch: usize,
    item: impl Fn(usize) -> (MatMut<F>, MatRef<F>, MatRef<F>) + Sync,
    alpha: F,
    accumulate: bool,
) {
    if batch == 0 {
        return;
    }
    let (out, a, _) = item(0);
    let (m, n, k) = (out.rows, out.cols, a.cols);
    if m == 0 || n == 0 {
        return;
    }
    let cut = Cut::new(batch, m, n, k);
    let (tiles, pieces, across) = (cut.tiles(m, n), cut.pieces(k), n.div_ceil(cut.cols));
    // The first piece of k goes to the output, the others to `partial` [batch, pieces - 1, m, n], added afterwards.
    let mut partial = Partial::take((pieces - 1) * batch * m * n);
    let others: MatMut<F> = MatMut::new(partial.pointer(), batch * (pieces - 1) * m, n, n as isize, 1);
    pool.run(batch * tiles * pieces, |task| {
        let (index, tile, piece) = (task / (tiles * pieces), task / pieces % tiles, task % pieces);
        let (out, a, b) = item(index);
        let (row, col, start) = (tile / across * cut.rows, tile % across * cut.cols, piece * cut.depth);
        let (rows, cols, depth) = (cut.rows.min(m - row), cut.cols.min(n - col), cut.depth.min(k - start));
        let (a, b) = (a.block(row, start, rows, depth), b.block(start, col, depth, cols));
        // SAFETY: the caller's promise; the tiles of different tasks do not overlap, nor do those of `partial`.
        unsafe {
            if piece == 0 {
                gemm_single(out.block(row, col, rows, cols), a, b, alpha, accumulate);
            } else {
                let top = (index * (pieces - 1) + piece - 1) * m;
                gemm_single(others.block(top + row, col, rows, cols), a, b, alpha, false);
            }
        }
    });
    if pieces == 1 {
        return;
    }
    let (count, rows) = blocks(m, n * pieces);
    pool.run(batch * count, |task| {
        let (index, top) = (task / count, task % count * rows);
        let out = item(index).0;
        for row in top..m.min(top + rows) {
            for piece in 0..pieces - 1 {
                let other = others.block((index * (pieces - 1) + piece) * m + row, 0, 1, n);
                // SAFETY: rows inside `out` and `partial`, each of one task.
                unsafe { add_row(out.block(row, 0, 1, n), other) };
            }
        }
    });
    partial.give_back();
}

/// Adds a contiguous row to a row.
///
/// # Safety
/// `row` is valid for reads and writes, `other`, contiguous, for reads; they do not overlap.
unsafe fn add_row<F: Float>(row: MatMut<F>, other: MatMut<F>) {
    // SAFETY: the caller's promise.
    let other = unsafe { std::slice::from_raw_parts(other.ptr, other.cols) };
    if row.col_stride == 1 {
        // SAFETY: as above.
        let row = unsafe { std::slice::from_raw_parts_mut(row.ptr, row.cols) };
        for (value, other) in row.iter_mut().zip(other) {
            *value += *other;
        }
    } else {
        for (j, other) in other.iter().enumerate() {
            // SAFETY: as above.
            unsafe { *row.at(0, j) += *other };
        }
    }
}

thread_local! {
    /// The buffer of [`Partial`] of this thread, kept from call to call.
    static PARTIAL: Cell<Vec<u64>> = const { Cell::new(Vec::new()) };
}

/// Sums over pieces of k that wait to be added to the output.
struct Partial(Vec<u64>);

impl Partial {
    /// Room for `length` values of at most 8 bytes.
    fn take(length: usize) -> Partial {
        if length == 0 {
            return Partial(Vec::new());
        }
        let mut buffer = PARTIAL.take();
        if buffer.len() < length {
            buffer = vec![0; length];
        }
        Partial(buffer)
    }

    fn pointer<F>(&mut self) -> *mut F {
        self.0.as_mut_ptr().cast()
    }

    fn give_back(self) {
        PARTIAL.set(self.0);
    }
}

/// One product of [`gemm_batched`] on the calling thread, in one piece.
///
/// # Safety
/// As for [`gemm_batched`].
pub(crate) unsafe fn gemm_single<F: Float>(out: MatMut<F>, a: MatRef<F>, b: MatRef<F>, alpha: F, accumulate: bool) {
    assert!(
        a.rows == out.rows && b.cols == out.cols && a.cols == b.rows,
        "gemm of [{}, {}] and [{}, {}] into [{}, {}]",
        a.rows,
        a.cols,
        b.rows,
        b.cols,
        out.rows,
        out.cols
    );
    if out.rows == 0 || out.cols == 0 || (a.cols == 0 && accumulate) {
        return;
    }
    if a.cols == 0 {
        for i in 0..out.rows {
            for j in 0..out.cols {
                // SAFETY: the place lies inside `out`.
                unsafe { *out.at(i, j) = F::ZERO };
            }
        }
        return;
    }
    if crate_takes_our_path() {
        // SAFETY: the caller's promise.
        unsafe {
            ::gemm::gemm(
                out.rows,
                out.cols,
                a.cols,
                out.ptr,
                out.col_stride,
                out.row_stride,
                accumulate,
                a.ptr,
                a.col_stride,
                a.row_stride,
                b.ptr,
                b.col_stride,
                b.row_stride,
                F::ONE,
                alpha,
                false,
                false,
                false,
                ::gemm::Parallelism::None,
            );
        }
    } else if out.col_stride == 1 || out.row_stride != 1 {
        dispatch(Product { out, a, b, alpha, accumulate });
    } else {
        dispatch(Product { out: out.t(), a: b.t(), b: a.t(), alpha, accumulate });
    }
}

/// Whether the crate, which takes the fastest path of the processor, takes the path of this process.
fn crate_takes_our_path() -> bool {
    path() == Path::best() && (cfg!(target_arch = "aarch64") || path() != Path::Portable)
}

#[cfg(test)]
mod tests;
