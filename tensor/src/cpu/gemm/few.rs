//! Products of a few rows with a matrix whose rows or columns are contiguous: each value of b is used so few times that packing it would
//! cost more than the product. b is read once, in the order of memory, eight vectors of sums at a time.

use super::super::isa::Isa;
use super::super::math::{self, Float};
use super::super::stored::Stored;
use super::kernel::Tiled;
use super::{Matrix, Values};
use half::bf16;

/// Most rows of a.
pub(super) const MOST: usize = 4;
/// Columns are divided among tasks in multiples of this: whole cache lines of whichever path and type.
pub(super) const UNIT: usize = 128;

/// `out = alpha a b (+ addend)`; `a` are rows of k values, a whole number of them at least as many as `out` has.
///
/// The maker promises that `b`, with a stride of 1, and the addend are valid for reads and `out` for writes.
pub(super) struct FewRows<'a, F> {
    pub(super) out: Matrix<F>,
    pub(super) a: &'a [F],
    pub(super) b: Matrix<F>,
    pub(super) alpha: F,
    pub(super) addend: Option<Matrix<F>>,
}

impl<F: Float> Tiled for FewRows<'_, F> {
    type Float = F;
    type Output = ();

    #[inline(always)]
    fn run<I: Isa, const MR: usize, const NR: usize>(self, isa: I) {
        // SAFETY: the maker's promise.
        unsafe {
            match self.b.values {
                Values::Wide(from) => self.rows::<I, F, NR>(isa, from),
                Values::Bf16(from) => self.rows::<I, bf16, NR>(isa, from),
            }
        }
    }
}

impl<F: Float> FewRows<'_, F> {
    /// # Safety
    /// The maker's promises; `b` begins at `from`.
    #[inline(always)]
    unsafe fn rows<I: Isa, S: Stored<F>, const N: usize>(&self, isa: I, from: *const S) {
        // SAFETY: the caller's promise.
        unsafe {
            match (self.out.rows, self.b.col_stride == 1) {
                (1, true) => self.along_rows::<I, S, 1, 4, N>(isa, from),
                (2, true) => self.along_rows::<I, S, 2, 2, N>(isa, from),
                (_, true) => self.along_rows::<I, S, MOST, 1, N>(isa, from),
                (1, false) => self.along_columns::<I, S, 1, 4, N>(isa, from),
                (2, false) => self.along_columns::<I, S, 2, 2, N>(isa, from),
                (_, false) => self.along_columns::<I, S, MOST, 1, N>(isa, from),
            }
        }
    }

    /// Row i of a; the last stands in for those that are not there.
    #[inline(always)]
    fn row(&self, i: usize) -> &[F] {
        let k = self.b.rows;
        let i = i.min(self.out.rows - 1);
        &self.a[i * k..(i + 1) * k]
    }

    /// Rows of b are contiguous: C * N sums for each of M rows, a value of a at a time.
    ///
    /// # Safety
    /// As [`FewRows::rows`].
    #[inline(always)]
    unsafe fn along_rows<I: Isa, S: Stored<F>, const M: usize, const C: usize, const N: usize>(
        &self,
        isa: I,
        from: *const S,
    ) {
        let Matrix { rows: k, cols, row_stride, .. } = self.b;
        let a: [&[F]; M] = std::array::from_fn(|i| self.row(i));
        let whole = cols / (C * N) * (C * N);
        for column in (0..whole).step_by(C * N) {
            let mut sums = [[[F::ZERO; N]; C]; M];
            let mut row = from.wrapping_add(column);
            for p in 0..k {
                // SAFETY: C * N values of row p of b.
                let b = unsafe { &*row.cast::<[[S; N]; C]>() }.map(|b| b.map(Stored::wide));
                for (sums, a) in sums.iter_mut().zip(&a) {
                    F::axpy(isa, a[p], b.as_flattened(), sums.as_flattened_mut());
                }
                row = row.wrapping_offset(row_stride);
            }
            for (i, sums) in sums.iter().enumerate().take(self.out.rows) {
                for (j, sum) in sums.as_flattened().iter().enumerate() {
                    // SAFETY: (i, column + j) lies inside out.
                    unsafe { self.out.put(i, column + j, self.alpha * *sum, self.addend) };
                }
            }
        }
        for column in whole..cols {
            for i in 0..self.out.rows {
                let mut sum = F::ZERO;
                for (p, a) in self.row(i).iter().enumerate() {
                    // SAFETY: (p, column) lies inside b.
                    let b = unsafe { *from.wrapping_offset(p as isize * row_stride).wrapping_add(column) };
                    sum = F::fma(isa, *a, b.wide(), sum);
                }
                // SAFETY: (i, column) lies inside out.
                unsafe { self.out.put(i, column, self.alpha * sum, self.addend) };
            }
        }
    }

    /// Columns of b are contiguous: the dot products of C of them with M rows, N sums each.
    ///
    /// # Safety
    /// As [`FewRows::rows`].
    #[inline(always)]
    unsafe fn along_columns<I: Isa, S: Stored<F>, const M: usize, const C: usize, const N: usize>(
        &self,
        isa: I,
        from: *const S,
    ) {
        let Matrix { rows: k, cols, col_stride, .. } = self.b;
        let a: [(&[[F; N]], &[F]); M] = std::array::from_fn(|i| self.row(i).as_chunks::<N>());
        for column in (0..cols).step_by(C) {
            // The last column stands in for those that are not there.
            let b: [(&[[S; N]], &[S]); C] = std::array::from_fn(|c| {
                let first = from.wrapping_offset((column + c).min(cols - 1) as isize * col_stride);
                // SAFETY: a column of b, k contiguous values.
                unsafe { std::slice::from_raw_parts(first, k) }.as_chunks::<N>()
            });
            let mut sums = [[[F::ZERO; N]; C]; M];
            for p in 0..k / N {
                for (c, b) in b.iter().enumerate() {
                    let b = b.0[p].map(Stored::wide);
                    for (sums, a) in sums.iter_mut().zip(&a) {
                        for ((sum, a), b) in sums[c].iter_mut().zip(&a.0[p]).zip(&b) {
                            *sum = F::fma(isa, *a, *b, *sum);
                        }
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate().take(self.out.rows) {
                for (c, sums) in sums.iter().enumerate().take(cols - column) {
                    let rest = a[i].1.iter().zip(b[c].1);
                    let sum = rest.fold(math::sum(isa, sums), |sum, (a, b)| F::fma(isa, *a, b.wide(), sum));
                    // SAFETY: (i, column + c) lies inside out.
                    unsafe { self.out.put(i, column + c, self.alpha * sum, self.addend) };
                }
            }
        }
    }
}
