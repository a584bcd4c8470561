//! Rows of a that are read next, asked for while tiles are multiplied: otherwise packing, or the tiles that read them in place, wait for memory.

use super::super::buffer::LINE;
use super::super::isa::prefetch;
use super::super::math::Float;
use super::{Matrix, Values};
use half::bf16;

/// Lines of a matrix that have not been asked for.
pub(super) struct Ahead {
    /// Where the next row begins, how many rows there are from there on, and how far apart.
    first: *const u8,
    rows: usize,
    stride: isize,
    /// Bytes of a row, and of those the first that was not asked for.
    bytes: usize,
    at: usize,
}

impl Ahead {
    /// All lines of a matrix whose rows are contiguous; of another, or of none, nothing. (Of contiguous columns a task reads pieces that are short and far
    /// apart: too many lines to be asked for at every tile.)
    pub(super) fn of<F: Float>(matrix: Option<Matrix<F>>) -> Self {
        let Some(Matrix { values, rows, cols, row_stride, .. }) = matrix.filter(|matrix| matrix.col_stride == 1) else {
            return Ahead { first: std::ptr::null(), rows: 0, stride: 0, bytes: 0, at: 0 };
        };
        let (first, size) = match values {
            Values::Wide(first) => (first.cast_const().cast::<u8>(), size_of::<F>()),
            Values::Bf16(first) => (first.cast_const().cast::<u8>(), size_of::<bf16>()),
        };
        Ahead { first, rows, stride: row_stride * size as isize, bytes: cols * size, at: 0 }
    }

    /// How many lines are to be asked for each time, so that all are after `times`.
    pub(super) fn share(&self, times: usize) -> usize {
        (self.rows * self.bytes.div_ceil(LINE)).div_ceil(times.max(1))
    }

    /// Asks for the next `count` lines.
    #[inline(always)]
    pub(super) fn ask(&mut self, count: usize) {
        for _ in 0..count {
            if self.rows == 0 {
                return;
            }
            prefetch::<2, _>(self.first.wrapping_add(self.at));
            self.at += LINE;
            if self.at >= self.bytes {
                (self.at, self.rows) = (0, self.rows - 1);
                self.first = self.first.wrapping_offset(self.stride);
            }
        }
    }
}
