//! Matrix products, out [m, n] = alpha a [m, k] b [k, n] (+ out), with any strides, f32 and f64.
//! The output is cut into tiles by shape alone and each tile is one single-threaded product over all of k, so the
//! bits do not depend on the number of threads. A tile runs in the `gemm` crate; where the crate would take
//! another instruction path than [`path`] (it cannot be told), in [`kernel`].

mod kernel;

use super::isa::{Path, dispatch, path};
use super::math::Float;
use super::parallel::Pool;
use kernel::Product;

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

            /// A contiguous row-major matrix.
            #[inline]
            pub(crate) fn contiguous(ptr: $pointer, rows: usize, cols: usize) -> Self {
                Self::new(ptr, rows, cols, cols as isize, 1)
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

/// The tile that outputs of m x n are cut into, by shape alone.
fn tile(m: usize, n: usize, k: usize) -> (usize, usize) {
    let _ = k;
    (m.min(256), n.min(512))
}

/// `out = alpha * a @ b`, plus `out` if `accumulate`, on the threads of `pool`. With k = 0 zeros (`out` stays if
/// `accumulate`). Without `accumulate` what `out` held is not read. Same bits for any number of threads.
///
/// # Safety
/// `a` and `b` are valid for reads and `out` for reads and writes at all their places; `out` overlaps neither of
/// them nor itself, and nobody else touches it during the call.
pub(crate) unsafe fn gemm<F: Float>(
    pool: &Pool,
    out: MatMut<F>,
    a: MatRef<F>,
    b: MatRef<F>,
    alpha: F,
    accumulate: bool,
) {
    // SAFETY: the caller's promise, for the one product of the batch.
    unsafe { gemm_batched(pool, 1, |_| (out, a, b), alpha, accumulate) }
}

/// [`gemm`] of the products `item(0..batch)`, which all have the shapes of the first; tiles of all of them are spread
/// over the threads together.
///
/// # Safety
/// As for [`gemm`], for every product; outputs do not overlap each other.
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
    let (tile_rows, tile_cols) = tile(out.rows, out.cols, a.cols);
    let (tiles_down, tiles_across) = (out.rows.div_ceil(tile_rows.max(1)), out.cols.div_ceil(tile_cols.max(1)));
    pool.run(batch * tiles_down * tiles_across, |task| {
        let (out, a, b) = item(task / (tiles_down * tiles_across));
        let (row, col) = (task / tiles_across % tiles_down * tile_rows, task % tiles_across * tile_cols);
        let (rows, cols) = (tile_rows.min(out.rows - row), tile_cols.min(out.cols - col));
        let a_rows = a.block(row, 0, rows, a.cols);
        let b_cols = b.block(0, col, b.rows, cols);
        // SAFETY: the caller's promise; the tiles of different tasks do not overlap.
        unsafe { gemm_single(out.block(row, col, rows, cols), a_rows, b_cols, alpha, accumulate) };
    });
}

/// [`gemm`] on the calling thread, in one piece.
///
/// # Safety
/// As for [`gemm`].
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
