//! The factors of attention's products, as cells in a task's scratch: rows of a head as they are, transposed in panels, or joined along their positions, and
//! scores as factors.

use std::ops::Range;

use super::KEYS;
use crate::Element;
use crate::cpu::access::View;
use crate::cpu::cells::{Cell, pair};
use crate::cpu::isa::Isa;
use crate::cpu::math::Float;
use crate::cpu::stored::Stored;
use crate::cpu::transpose::{SQUARE, transpose};
use half::bf16;

/// One head of one batch entry of an input [B, T, H, D].
#[derive(Clone, Copy)]
pub(super) struct Head<'a, S> {
    view: View<'a, S>,
    start: usize,
    stride: usize,
    positions: usize,
    pub(super) width: usize,
}

impl<'a, S: Element> Head<'a, S> {
    pub(super) fn new(view: &View<'a, S>, batch: usize, head: usize) -> Self {
        let (shape, strides) = (view.layout().shape(), view.layout().strides());
        assert!(batch < shape[0] && head < shape[2] && view.layout().has_contiguous_rows());
        let start = view.layout().offset() + batch * strides[0] + head * strides[2];
        Head { view: *view, start, stride: strides[1], positions: shape[1], width: shape[3] }
    }

    #[inline(always)]
    pub(super) fn row(&self, t: usize) -> &'a [S] {
        assert!(t < self.positions);
        // SAFETY: row t of the head lies inside the view, and its last dimension is contiguous.
        unsafe { std::slice::from_raw_parts(self.view.at(self.start + t * self.stride), self.width) }
    }

    /// Rows `range` as cells of neighbours, each row padded to `pitch` cells; the padding stays what it is.
    #[inline(always)]
    pub(super) fn copy_rows<F: Float, C: Cell<F, Stored = S>>(&self, range: Range<usize>, to: &mut [F], pitch: usize) {
        for (t, to) in range.zip(to.chunks_exact_mut(pitch.max(1))) {
            let row = self.row(t);
            let whole = row.len() / C::VALUES;
            let (cells, rest) = to.split_at_mut(whole);
            for (cell, values) in cells.iter_mut().zip(row.chunks_exact(C::VALUES)) {
                // SAFETY: the values of a cell.
                *cell = unsafe { C::cell(values.as_ptr(), 1) };
            }
            if whole * C::VALUES < row.len() {
                // SAFETY: the last value.
                rest[0] = unsafe { C::alone(&row[whole * C::VALUES]) };
            }
        }
    }

    /// Rows `range` as cells along the positions: a row of cells, padded to `pitch`, for every row, or for every two.
    #[inline(always)]
    pub(super) fn join_rows<F: Float, C: Cell<F, Stored = S>>(&self, range: Range<usize>, to: &mut [F], pitch: usize) {
        if C::VALUES == 1 {
            return self.copy_rows::<F, C>(range, to, pitch);
        }
        for (t, to) in range.clone().step_by(C::VALUES).zip(to.chunks_exact_mut(pitch.max(1))) {
            let whole = t + C::VALUES <= range.end;
            assert!(t + if whole { C::VALUES - 1 } else { 0 } < self.positions);
            let row = self.view.at(self.start + t * self.stride);
            let to = to[..self.width].iter_mut().enumerate();
            // SAFETY: values of row t, and of the next one where there is such a row.
            unsafe {
                if whole {
                    to.for_each(|(i, to)| *to = C::cell(row.add(i), self.stride as isize));
                } else {
                    to.for_each(|(i, to)| *to = C::alone(row.add(i)));
                }
            }
        }
    }

    /// Rows `range`, times `factor` where a cell is one value, transposed in panels of N rows, each [cells of D, N]; rows that the last panel lacks are
    /// zeros.
    #[inline(always)]
    pub(super) fn transpose<F: Float, C: Cell<F, Stored = S>, const N: usize>(
        &self,
        range: Range<usize>,
        factor: F,
        to: &mut [F],
    ) {
        let cells = self.width.div_ceil(C::VALUES);
        let padded = range.len().next_multiple_of(N);
        if padded != range.len() {
            to[(padded - N) * cells..padded * cells].fill(F::ZERO);
        }
        for i in (0..range.len()).step_by(SQUARE) {
            let columns = to[i / N * N * cells..(i / N + 1) * N * cells].as_chunks_mut::<N>().0;
            let rows = self.rows_from(range.start + i);
            let (place, count) = (i % N, SQUARE.min(range.len() - i));
            let whole = if count == SQUARE { self.width / C::VALUES / SQUARE * SQUARE } else { 0 };
            for (j, columns) in columns[..whole].chunks_exact_mut(SQUARE).enumerate() {
                let at = j * SQUARE * C::VALUES;
                let [a, b, c, d] = rows;
                let lines = [
                    line::<F, C>(a, at, factor),
                    line::<F, C>(b, at, factor),
                    line::<F, C>(c, at, factor),
                    line::<F, C>(d, at, factor),
                ];
                for (column, line) in columns.iter_mut().zip(transpose(lines)) {
                    *column[place..].first_chunk_mut().expect("N is a multiple of SQUARE") = line;
                }
            }
            for (j, column) in columns.iter_mut().enumerate().skip(whole) {
                for (x, row) in column[place..].iter_mut().zip(&rows).take(count) {
                    let values = &row[j * C::VALUES..];
                    // SAFETY: as many values as are looked at.
                    let cell = unsafe {
                        if values.len() >= C::VALUES { C::cell(values.as_ptr(), 1) } else { C::alone(values.as_ptr()) }
                    };
                    *x = if C::VALUES == 1 { cell * factor } else { cell };
                }
            }
        }
    }

    /// Four rows from `t` on; the last row stands in for those beyond it.
    #[inline(always)]
    fn rows_from(&self, t: usize) -> [&'a [S]; SQUARE] {
        std::array::from_fn(|i| self.row((t + i).min(self.positions - 1)))
    }
}

/// [`SQUARE`] cells of a row from value `at` on, times `factor` where a cell is one value. (A closure given to `map` would not be compiled for the
/// instruction path.)
#[inline(always)]
fn line<F: Float, C: Cell<F>>(row: &[C::Stored], at: usize, factor: F) -> [F; SQUARE] {
    let values = &row[at..at + SQUARE * C::VALUES];
    // SAFETY: the values of as many cells.
    let cells = unsafe { C::line(values.as_ptr()) };
    if C::VALUES > 1 {
        return cells;
    }
    [cells[0] * factor, cells[1] * factor, cells[2] * factor, cells[3] * factor]
}

/// A row of values becomes one of cells of neighbours, at its beginning. N values at a time.
#[inline(always)]
pub(super) fn narrow_row<F: Float, C: Cell<F>, I: Isa, const N: usize>(isa: I, row: &mut [F]) {
    if C::VALUES == 1 {
        return;
    }
    for place in (0..row.len()).step_by(N) {
        let narrow = rounded::<F, I, N>(isa, row[place..].first_chunk().expect("whole panels"));
        let to = &mut row[place / C::VALUES..][..N / C::VALUES];
        to.iter_mut().zip(narrow.chunks_exact(C::VALUES)).for_each(|(to, x)| *to = pair(x[0], x[1]));
    }
}

/// Rows of N values, `row` apart, become rows of cells along the rows, `to_row` apart, in `to`; a row that the last cell lacks is zeros. Nothing is done where a cell is one
/// value: gives whichever of both holds the cells, and how far apart its rows are.
#[inline(always)]
pub(super) fn joined<'a, F: Float, C: Cell<F>, I: Isa, const N: usize>(
    isa: I,
    rows: usize,
    (values, row): (&'a [F], usize),
    (to, to_row): (&'a mut [F], usize),
) -> (&'a [F], usize) {
    if C::VALUES == 1 {
        return (values, row);
    }
    for (at, to) in (0..rows).step_by(C::VALUES).zip(to.chunks_mut(to_row)) {
        let first = rounded::<F, I, N>(isa, values[at * row..].first_chunk().expect("a panel"));
        let second = match at + 1 < rows {
            true => rounded::<F, I, N>(isa, values[(at + 1) * row..].first_chunk().expect("a panel")),
            false => [0; N],
        };
        for i in 0..N {
            to[i] = pair(first[i], second[i]);
        }
    }
    (to, to_row)
}

/// Cells that a block of keys takes when it is joined along them, of so many columns; none where a cell is one value, and nothing is joined.
pub(super) fn joined_len<F: Float, C: Cell<F>>(columns: usize) -> usize {
    if C::VALUES == 1 { 0 } else { KEYS.div_ceil(C::VALUES) * columns }
}

/// Bits of N values in bf16.
#[inline(always)]
fn rounded<F: Float, I: Isa, const N: usize>(isa: I, values: &[F; N]) -> [u16; N] {
    let mut narrow = [bf16::ZERO; N];
    <bf16 as Stored<F>>::put(isa, values, &mut narrow);
    bytemuck::cast_slice::<bf16, u16>(&narrow).try_into().expect("as many bits")
}
