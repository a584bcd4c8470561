//! Rows of a that are read next, asked for while tiles are multiplied: otherwise packing, or the tiles that read them in place, wait for memory.

use super::super::buffer::LINE;
use super::super::isa::prefetch;
use super::super::math::Float;
use super::{Matrix, Values};
use half::bf16;

/// Rows that have not been asked for, piece by piece.
pub(super) struct Ahead {
    /// Where the next row begins, how many rows there are from there on, and how far apart.
    first: *const u8,
    rows: usize,
    stride: isize,
    /// Bytes of a row, of those the first that was not asked for, and of a piece.
    bytes: usize,
    at: usize,
    piece: usize,
}

impl Ahead {
    /// All rows of a matrix in which they are contiguous, in at most `times` pieces; of another, or of none, nothing. (Of contiguous columns a task reads pieces that
    /// are short and far apart: too many lines to be asked for at every tile.) Of more rows than pieces, as many as there are pieces.
    pub(super) fn of<F: Float>(matrix: Option<Matrix<F>>, times: usize) -> Self {
        let Some(Matrix { values, rows, cols, row_stride, .. }) = matrix.filter(|matrix| matrix.col_stride == 1) else {
            return Ahead { first: std::ptr::null(), rows: 0, stride: 0, bytes: 0, at: 0, piece: 0 };
        };
        let (first, size) = match values {
            Values::Wide(first) => (first.cast_const().cast::<u8>(), size_of::<F>()),
            Values::Bf16(first) => (first.cast_const().cast::<u8>(), size_of::<bf16>()),
        };
        let bytes = cols * size;
        let piece = bytes.div_ceil((times / rows.max(1)).max(1)).next_multiple_of(LINE);
        Ahead { first, rows, stride: row_stride * size as isize, bytes, at: 0, piece }
    }

    /// The next piece, empty if there is none.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Piece {
        if self.rows == 0 {
            // An address that is there: a processor would look for another one in vain, at every step.
            return Piece { first: std::ptr::from_mut(self).cast(), bytes: 0 };
        }
        let piece = Piece { first: self.first.wrapping_add(self.at), bytes: self.piece.min(self.bytes - self.at) };
        self.at += self.piece;
        if self.at >= self.bytes {
            (self.at, self.rows) = (0, self.rows - 1);
            self.first = self.first.wrapping_offset(self.stride);
        }
        piece
    }
}

/// Bytes of a row that stand side by side.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    first: *const u8,
    bytes: usize,
}

impl Piece {
    /// Asks for all of it.
    #[inline(always)]
    pub(super) fn ask(self) {
        for at in (0..self.bytes).step_by(LINE) {
            prefetch::<2, _>(self.first.wrapping_add(at));
        }
    }

    /// To be asked for in `times` steps.
    #[inline(always)]
    pub(super) fn in_steps(self, times: usize) -> Steps {
        Steps { next: self.first, step: self.bytes.div_ceil(times.max(1)) }
    }
}

/// A piece, step by step. Where a step is shorter than a line, lines are asked for more than once, which costs nothing.
pub(super) struct Steps {
    next: *const u8,
    step: usize,
}

impl Steps {
    /// Asks for the line where the next step begins.
    #[inline(always)]
    pub(super) fn ask(&mut self) {
        prefetch::<2, _>(self.next);
        self.next = self.next.wrapping_add(self.step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the pieces of rows of `cols` values of f32, `stride` apart, begin and end, in bytes from the first value on.
    fn pieces([rows, cols, stride]: [usize; 3], col_stride: isize, times: usize) -> Vec<[usize; 2]> {
        let values = vec![0.0f32; rows * stride];
        let first = values.as_ptr().cast_mut();
        let matrix = Matrix { values: Values::Wide(first), rows, cols, row_stride: stride as isize, col_stride };
        let mut ahead = Ahead::of(Some(matrix), times);
        let piece = |_| {
            let Piece { first: start, bytes } = ahead.next();
            (bytes > 0).then(|| start.addr() - first.addr()).map(|start| [start, start + bytes])
        };
        (0..times).map_while(piece).collect()
    }

    #[test]
    fn pieces_are_all_of_the_rows_if_there_are_as_many_times() {
        for [rows, cols, stride, times] in
            [[3, 100, 100, 3], [3, 100, 128, 8], [3, 16, 20, 100], [5, 1000, 1000, 23], [1, 1, 1, 1]]
        {
            let pieces = pieces([rows, cols, stride], 1, times);
            let mut expected = (0..rows).flat_map(|row| (0..cols).map(move |col| 4 * (row * stride + col)));
            for [start, end] in pieces {
                assert!((start..end).step_by(4).all(|byte| expected.next() == Some(byte)), "{rows} x {cols}");
            }
            assert_eq!(expected.next(), None, "{rows} x {cols} in {times}");
        }
    }

    #[test]
    fn fewer_times_than_rows_ask_for_the_first_rows_and_columns_for_nothing() {
        assert_eq!(pieces([4, 10, 10], 1, 2), [[0, 40], [40, 80]]);
        assert_eq!(pieces([4, 10, 10], 2, 2), [[0; 2]; 0]);
    }

    #[test]
    fn steps_come_to_every_line_of_a_piece() {
        let bytes = [0u8; 1000];
        for times in [20, 96] {
            let mut steps = Piece { first: bytes.as_ptr(), bytes: bytes.len() }.in_steps(times);
            let mut asked = Vec::new();
            for _ in 0..times {
                asked.push(steps.next.addr() / LINE);
                steps.ask();
            }
            let lines = bytes.as_ptr_range().start.addr() / LINE..=(bytes.as_ptr_range().end.addr() - 1) / LINE;
            asked.dedup();
            assert!(asked.starts_with(&Vec::from_iter(lines)), "{times} steps: {asked:?}");
        }
    }
}
