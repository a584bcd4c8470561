//! Packing: values of a matrix in the order in which register tiles read them, in the type that is computed in.

use super::super::isa::Isa;
use super::super::math::{Float, widen};
use super::super::transpose::{SQUARE, transpose};
use super::kernel::Tiled;
use super::{DEPTH, Matrix, Values};
use half::bf16;

/// A stored type, read as F.
pub(super) trait Stored<F>: Copy {
    /// The value, exact.
    fn wide(self) -> F;
}

impl<F: Float> Stored<F> for F {
    #[inline(always)]
    fn wide(self) -> F {
        self
    }
}

impl<F: Float> Stored<F> for bf16 {
    #[inline(always)]
    fn wide(self) -> F {
        F::from_f64(f64::from(widen(self.to_bits())))
    }
}

/// Where the value (i, k) of a packed panel of a stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// `i * DEPTH + k`: rows were contiguous.
    Rows,
    /// `k * MR + i`: columns were.
    Columns,
}

/// Packs `a` [rows, depth] as panels of MR rows, each [`DEPTH`] * MR values; rows beyond the last are zeros.
///
/// The maker promises that `a` is valid for reads.
pub(super) struct PackLeft<'a, F> {
    pub(super) to: &'a mut [F],
    pub(super) a: Matrix<F>,
}

impl<F: Float> Tiled for PackLeft<'_, F> {
    type Float = F;
    type Output = Form;

    #[inline(always)]
    fn run<I: Isa, const MR: usize, const NR: usize>(self, _: I) -> Form {
        let Matrix { rows, cols, row_stride, col_stride, .. } = self.a;
        let turned = row_stride == 1 && col_stride != 1;
        // SAFETY: the maker's promise.
        unsafe {
            match (self.a.values, turned) {
                (Values::Wide(from), false) => {
                    rows_of::<F, F, MR>(self.to, from, [rows, cols], [row_stride, col_stride])
                }
                (Values::Bf16(from), false) => {
                    rows_of::<F, bf16, MR>(self.to, from, [rows, cols], [row_stride, col_stride])
                }
                (Values::Wide(from), true) => columns_of::<F, F, MR>(self.to, from, [rows, cols], col_stride),
                (Values::Bf16(from), true) => columns_of::<F, bf16, MR>(self.to, from, [rows, cols], col_stride),
            }
        }
        if turned { Form::Columns } else { Form::Rows }
    }
}

/// [`Form::Rows`].
///
/// # Safety
/// The matrix is valid for reads.
#[inline(always)]
unsafe fn rows_of<F: Float, S: Stored<F>, const MR: usize>(
    to: &mut [F],
    from: *const S,
    [rows, depth]: [usize; 2],
    [row_stride, col_stride]: [isize; 2],
) {
    for (i, row) in to.chunks_exact_mut(DEPTH).enumerate().take(rows.next_multiple_of(MR)) {
        let row = &mut row[..depth];
        if i >= rows {
            row.fill(F::ZERO);
            continue;
        }
        let from = from.wrapping_offset(i as isize * row_stride);
        if col_stride == 1 {
            // SAFETY: row i of the matrix.
            let from = unsafe { std::slice::from_raw_parts(from, depth) };
            row.iter_mut().zip(from).for_each(|(value, from)| *value = from.wide());
        } else {
            for (k, value) in row.iter_mut().enumerate() {
                // SAFETY: (i, k) lies inside the matrix.
                *value = unsafe { (*from.wrapping_offset(k as isize * col_stride)).wide() };
            }
        }
    }
}

/// [`Form::Columns`]; the rows of a column are contiguous.
///
/// # Safety
/// The matrix is valid for reads.
#[inline(always)]
unsafe fn columns_of<F: Float, S: Stored<F>, const MR: usize>(
    to: &mut [F],
    from: *const S,
    [rows, depth]: [usize; 2],
    col_stride: isize,
) {
    // SAFETY: column k of the matrix.
    let column = |k: usize| unsafe { std::slice::from_raw_parts(from.wrapping_offset(k as isize * col_stride), rows) };
    // A few columns at a time, so that what is read and what is written is used up while it is near.
    for k in (0..depth).step_by(COLUMNS) {
        let columns = COLUMNS.min(depth - k);
        for (panel, row) in to.chunks_exact_mut(DEPTH * MR).zip((0..rows).step_by(MR)) {
            let places = &mut panel.as_chunks_mut::<MR>().0[k..k + columns];
            for (i, place) in places.iter_mut().enumerate() {
                let values = &column(k + i)[row..];
                match values.first_chunk::<MR>() {
                    Some(values) => *place = values.map(Stored::wide),
                    None => *place = std::array::from_fn(|i| values.get(i).map_or(F::ZERO, |value| value.wide())),
                }
            }
        }
    }
}

/// Columns that are packed together.
const COLUMNS: usize = 8;

/// Packs `b`, values `at..at + b.rows` of a block of `depth` values of k, as panels of NR columns, each [depth, NR]; columns beyond the last are zeros.
///
/// The maker promises that `b` is valid for reads and that `to`, the first panel of these columns, has room for whole panels, whose
/// places for these values nobody else touches.
pub(super) struct PackRight<F> {
    pub(super) to: *mut F,
    pub(super) depth: usize,
    pub(super) at: usize,
    pub(super) b: Matrix<F>,
}

impl<F: Float> Tiled for PackRight<F> {
    type Float = F;
    type Output = ();

    #[inline(always)]
    fn run<I: Isa, const MR: usize, const NR: usize>(self, _: I) {
        // SAFETY: the maker's promise.
        unsafe {
            match self.b.values {
                Values::Wide(from) => self.pack::<F, NR>(from),
                Values::Bf16(from) => self.pack::<bf16, NR>(from),
            }
        }
    }
}

impl<F: Float> PackRight<F> {
    /// The place of the values of k in panel `panel`.
    ///
    /// # Safety
    /// There is such a panel, and no other reference to the place.
    #[inline(always)]
    unsafe fn place<'a, const NR: usize>(&self, panel: usize) -> &'a mut [[F; NR]] {
        // SAFETY: the maker's and the caller's promise.
        unsafe {
            let first = self.to.cast::<[F; NR]>().add(panel * self.depth + self.at);
            std::slice::from_raw_parts_mut(first, self.b.rows)
        }
    }

    /// # Safety
    /// The maker's promises.
    #[inline(always)]
    unsafe fn pack<S: Stored<F>, const NR: usize>(&self, from: *const S) {
        let Matrix { rows, cols, row_stride, col_stride, .. } = self.b;
        let at = |k: usize, j: usize| from.wrapping_offset(k as isize * row_stride + j as isize * col_stride);
        if col_stride == 1 {
            // Row by row: the source is read in order.
            for k in 0..rows {
                // SAFETY: row k of the matrix.
                let row = unsafe { std::slice::from_raw_parts(at(k, 0), cols) };
                let (whole, rest) = row.as_chunks::<NR>();
                for (panel, values) in whole.iter().enumerate() {
                    // SAFETY: a panel of these columns.
                    let place = unsafe { self.place::<NR>(panel) };
                    place[k] = values.map(Stored::wide);
                }
                if !rest.is_empty() {
                    // SAFETY: as above.
                    let place = &mut unsafe { self.place::<NR>(whole.len()) }[k];
                    *place = [F::ZERO; NR];
                    place.iter_mut().zip(rest).for_each(|(value, from)| *value = from.wide());
                }
            }
            return;
        }
        for (panel, column) in (0..cols).step_by(NR).enumerate() {
            let width = NR.min(cols - column);
            // SAFETY: a panel of these columns.
            let place = unsafe { self.place::<NR>(panel) };
            let mut k = 0;
            if row_stride == 1 && width == NR {
                while k + SQUARE <= rows {
                    for j in (0..NR).step_by(SQUARE) {
                        // SAFETY: SQUARE values of each of SQUARE columns, which are contiguous.
                        let lines: [[F; SQUARE]; SQUARE] = std::array::from_fn(|i| unsafe {
                            at(k, column + j + i).cast::<[S; SQUARE]>().read_unaligned().map(Stored::wide)
                        });
                        for (i, line) in transpose(lines).into_iter().enumerate() {
                            *place[k + i][j..].first_chunk_mut().expect("NR is a multiple of SQUARE") = line;
                        }
                    }
                    k += SQUARE;
                }
            }
            for (k, values) in place.iter_mut().enumerate().skip(k) {
                *values = [F::ZERO; NR];
                for (j, value) in values.iter_mut().enumerate().take(width) {
                    // SAFETY: (k, column + j) lies inside the matrix.
                    *value = unsafe { (*at(k, column + j)).wide() };
                }
            }
        }
    }
}
