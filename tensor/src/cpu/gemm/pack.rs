//! Packing: a matrix in the order in which register tiles read it, as cells of values in the type that is computed in or of pairs of bf16.

use super::super::cells::{Cell, Pairs, Wide};
use super::super::isa::{Isa, prefetch};
use super::super::math::Float;
use super::super::transpose::{SQUARE, transpose};
use super::factors::Order;
use super::kernel::Tiled;
use super::{Cells, DEPTH, Matrix, Values};
use half::bf16;

/// Packs `a` as panels of MR rows, each [`DEPTH`] * MR cells; rows beyond the last are zeros. In a panel stand [`DEPTH`] cells of each row, or MR of each column, as
/// [`Order::of`] says.
///
/// The maker promises that `a` is valid for reads, and stored in bf16 if the cells are pairs.
pub(super) struct PackLeft<'a, F> {
    pub(super) to: &'a mut [F],
    pub(super) cells: Cells,
    pub(super) a: Matrix<F>,
}

impl<F: Float> Tiled for PackLeft<'_, F> {
    type Float = F;
    type Output = ();

    #[inline(always)]
    fn run<I: Isa, const MR: usize, const NR: usize>(self, isa: I) {
        // SAFETY: the maker's promise.
        unsafe {
            match (self.a.values, self.cells) {
                (Values::Wide(from), _) => self.pack::<Wide<F>, I, MR>(isa, from),
                (Values::Bf16(from), Cells::Values) => self.pack::<Wide<bf16>, I, MR>(isa, from),
                (Values::Bf16(from), Cells::Pairs) => self.pack::<Pairs, I, MR>(isa, from),
            }
        }
    }
}

impl<F: Float> PackLeft<'_, F> {
    /// # Safety
    /// `a` begins at `from` and is valid for reads.
    #[inline(always)]
    unsafe fn pack<P: Cell<F>, I: Isa, const MR: usize>(self, isa: I, from: *const P::Stored) {
        // SAFETY: the caller's promise.
        unsafe {
            match Order::of(&self.a) {
                Order::Rows => self.rows::<P, MR>(from),
                Order::Columns => self.columns::<P, I, MR>(isa, from),
            }
        }
    }

    /// [`Order::Rows`].
    ///
    /// # Safety
    /// As [`PackLeft::pack`].
    #[inline(always)]
    unsafe fn rows<P: Cell<F>, const MR: usize>(self, from: *const P::Stored) {
        let Matrix { rows, cols, row_stride, col_stride, .. } = self.a;
        let (whole, odd) = (cols / P::VALUES, !cols.is_multiple_of(P::VALUES));
        for (i, row) in self.to.chunks_exact_mut(DEPTH).enumerate().take(rows.next_multiple_of(MR)) {
            let row = &mut row[..cols.div_ceil(P::VALUES)];
            if i >= rows {
                row.fill(F::ZERO);
                continue;
            }
            let from = from.wrapping_offset(i as isize * row_stride);
            let at = |k: usize| from.wrapping_offset((k * P::VALUES) as isize * col_stride);
            // SAFETY: values of row i of the matrix.
            unsafe {
                if col_stride == 1 {
                    P::neighbours(std::slice::from_raw_parts(from, cols), row);
                    continue;
                }
                row[..whole].iter_mut().enumerate().for_each(|(k, cell)| *cell = P::cell(at(k), col_stride));
                if odd {
                    row[whole] = P::alone(at(whole));
                }
            }
        }
    }

    /// [`Order::Columns`]; the rows of a column are contiguous.
    ///
    /// # Safety
    /// As [`PackLeft::pack`].
    #[inline(always)]
    unsafe fn columns<P: Cell<F>, I: Isa, const MR: usize>(self, isa: I, from: *const P::Stored) {
        let Matrix { rows, cols, col_stride, .. } = self.a;
        let whole = cols / P::VALUES;
        let at = |i: usize, k: usize| from.wrapping_offset((k * P::VALUES) as isize * col_stride).wrapping_add(i);
        // A few cells along k at a time, so that what is read and what is written is used up while it is near.
        for k in (0..cols.div_ceil(P::VALUES)).step_by(COLUMNS) {
            let ks = k..(k + COLUMNS).min(cols.div_ceil(P::VALUES));
            for (panel, row) in self.to.chunks_exact_mut(DEPTH * MR).zip((0..rows).step_by(MR)) {
                let height = MR.min(rows - row);
                let places = &mut panel.as_chunks_mut::<MR>().0[ks.clone()];
                // What is read after this panel and these cells.
                for k in ks.clone() {
                    for value in 0..P::VALUES {
                        prefetch::<1, _>(at(row + MR, k + COLUMNS).wrapping_offset(value as isize * col_stride));
                    }
                }
                for (k, place) in ks.clone().zip(places) {
                    // SAFETY: values of the matrix.
                    unsafe {
                        if height == MR && k < whole {
                            side_by_side::<F, P, I, MR>(isa, at(row, k), col_stride, place);
                        } else {
                            *place = [F::ZERO; MR];
                            for (i, cell) in place.iter_mut().enumerate().take(height) {
                                let at = at(row + i, k);
                                *cell = if k < whole { P::cell(at, col_stride) } else { P::alone(at) };
                            }
                        }
                    }
                }
            }
        }
    }
}

/// N cells whose values stand side by side, from `first` on, and, if there are two in a cell, from `step` further on.
///
/// # Safety
/// The values are valid for reads.
#[inline(always)]
unsafe fn side_by_side<F: Float, P: Cell<F>, I: Isa, const N: usize>(
    isa: I,
    first: *const P::Stored,
    step: isize,
    to: &mut [F; N],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let second = match P::VALUES {
            1 => None,
            _ => Some(std::slice::from_raw_parts(first.wrapping_offset(step), N)),
        };
        P::join(isa, std::slice::from_raw_parts(first, N), second, to);
    }
}

/// Cells along k that are packed together.
const COLUMNS: usize = 8;

/// Packs `b`, from cell `at` of a block of `depth` cells along k on, as panels of NR columns, each [depth, NR]; columns beyond the last are zeros.
///
/// The maker promises that `b` is valid for reads, and stored in bf16 if the cells are pairs, and that `to`, the first panel of these
/// columns, has room for whole panels, whose places for these values nobody else touches.
pub(super) struct PackRight<F> {
    pub(super) to: *mut F,
    pub(super) cells: Cells,
    pub(super) depth: usize,
    pub(super) at: usize,
    pub(super) b: Matrix<F>,
}

impl<F: Float> Tiled for PackRight<F> {
    type Float = F;
    type Output = ();

    #[inline(always)]
    fn run<I: Isa, const MR: usize, const NR: usize>(self, isa: I) {
        // SAFETY: the maker's promise.
        unsafe {
            match (self.b.values, self.cells) {
                (Values::Wide(from), _) => self.pack::<Wide<F>, I, NR>(isa, from),
                (Values::Bf16(from), Cells::Values) => self.pack::<Wide<bf16>, I, NR>(isa, from),
                (Values::Bf16(from), Cells::Pairs) => self.pack::<Pairs, I, NR>(isa, from),
            }
        }
    }
}

impl<F: Float> PackRight<F> {
    /// The places of `cells` cells along k in panel `panel`.
    ///
    /// # Safety
    /// There is such a panel, and no other reference to the place.
    #[inline(always)]
    unsafe fn place<'a, const NR: usize>(&self, panel: usize, cells: usize) -> &'a mut [[F; NR]] {
        // SAFETY: the maker's and the caller's promise.
        unsafe {
            let first = self.to.cast::<[F; NR]>().add(panel * self.depth + self.at);
            std::slice::from_raw_parts_mut(first, cells)
        }
    }

    /// # Safety
    /// The maker's promises; `b` begins at `from`.
    #[inline(always)]
    unsafe fn pack<P: Cell<F>, I: Isa, const NR: usize>(&self, isa: I, from: *const P::Stored) {
        let Matrix { rows, cols, row_stride, col_stride, .. } = self.b;
        let (whole, cells) = (rows / P::VALUES, rows.div_ceil(P::VALUES));
        let at =
            |k: usize, j: usize| from.wrapping_offset((k * P::VALUES) as isize * row_stride + j as isize * col_stride);
        // SAFETY: the cell (k, j) lies inside the matrix.
        let cell =
            |k: usize, j: usize| unsafe { if k < whole { P::cell(at(k, j), row_stride) } else { P::alone(at(k, j)) } };
        if col_stride == 1 {
            // Row by row: the source is read in order.
            for k in 0..cells {
                for (panel, column) in (0..cols).step_by(NR).enumerate() {
                    let width = NR.min(cols - column);
                    // SAFETY: a panel of these columns; values of the matrix.
                    unsafe {
                        let place = &mut self.place::<NR>(panel, cells)[k];
                        if width == NR && k < whole {
                            side_by_side::<F, P, I, NR>(isa, at(k, column), row_stride, place);
                        } else {
                            *place = [F::ZERO; NR];
                            place.iter_mut().enumerate().take(width).for_each(|(j, to)| *to = cell(k, column + j));
                        }
                    }
                }
            }
            return;
        }
        for (panel, column) in (0..cols).step_by(NR).enumerate() {
            let width = NR.min(cols - column);
            // SAFETY: a panel of these columns.
            let place = unsafe { self.place::<NR>(panel, cells) };
            let mut k = 0;
            if row_stride == 1 && width == NR {
                while k + SQUARE <= whole {
                    for j in (0..NR).step_by(SQUARE) {
                        // SAFETY: SQUARE cells of each of SQUARE columns, which are contiguous.
                        let lines = std::array::from_fn(|i| unsafe { P::line(at(k, column + j + i)) });
                        for (i, line) in transpose(lines).into_iter().enumerate() {
                            *place[k + i][j..].first_chunk_mut().expect("NR is a multiple of SQUARE") = line;
                        }
                    }
                    k += SQUARE;
                }
            }
            for (k, cells) in place.iter_mut().enumerate().skip(k) {
                *cells = [F::ZERO; NR];
                cells.iter_mut().enumerate().take(width).for_each(|(j, to)| *to = cell(k, column + j));
            }
        }
    }
}
