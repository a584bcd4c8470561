//! The factors of attention's products, as cells in a task's scratch: rows of a head as they are, transposed in panels, or joined along their positions.

use std::ops::Range;

use crate::Element;
use crate::cpu::access::View;
use crate::cpu::buffer::LINE;
use crate::cpu::cells::Cell;
use crate::cpu::isa::{Isa, prefetch};
use crate::cpu::math::Float;
use crate::cpu::transpose::{SQUARE, transpose};

/// How many rows ahead one is asked for.
pub(super) const AHEAD: usize = 8;

/// Asks for the lines of a row.
#[inline(always)]
pub(super) fn ask_for<S>(row: *const S, width: usize) {
    for place in (0..width).step_by(LINE / size_of::<S>()) {
        prefetch::<1, _>(row.wrapping_add(place));
    }
}

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

    /// Asks for the row [`AHEAD`] of row t: those of a head are too far apart for a processor to foresee.
    #[inline(always)]
    fn ask(&self, t: usize) {
        ask_for(self.view.at(self.start).wrapping_add((t + AHEAD) * self.stride), self.width);
    }

    /// Rows `range` as cells of neighbours, each row padded to `pitch` cells; the padding stays what it is.
    #[inline(always)]
    pub(super) fn copy_rows<F: Float, C: Cell<F, Stored = S>>(&self, range: Range<usize>, to: &mut [F], pitch: usize) {
        for (t, to) in range.zip(to.chunks_exact_mut(pitch.max(1))) {
            self.ask(t);
            C::neighbours(self.row(t), to);
        }
    }

    /// Rows `range` as cells along the positions: a row of cells, padded to `pitch`, for every row, or for every two.
    #[inline(always)]
    pub(super) fn join_rows<F: Float, C: Cell<F, Stored = S>, I: Isa>(
        &self,
        isa: I,
        range: Range<usize>,
        to: &mut [F],
        pitch: usize,
    ) {
        for (t, to) in range.clone().step_by(C::VALUES).zip(to.chunks_exact_mut(pitch.max(1))) {
            (t..t + C::VALUES).for_each(|t| self.ask(t));
            let next = (C::VALUES > 1 && t + 1 < range.end).then(|| self.row(t + 1));
            C::join(isa, self.row(t), next, to);
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
            (0..SQUARE).for_each(|j| self.ask(range.start + i + j));
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
