//! A matrix product on one thread, out = alpha a b (+ out): panels of a and b are packed so that a register tile of
//! MR x NR sums reads both without strides, over at most [`DEPTH`] values of k at a time (the loops of Goto and
//! van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). Generic over the instruction path.

use super::super::isa::{Isa, Kernel};
use super::super::math::Float;
use super::{MatMut, MatRef};
use bytemuck::{Pod, Zeroable};
use std::cell::RefCell;

/// Values of k in a packed panel: a panel of b this deep stays in the first-level cache.
const DEPTH: usize = 256;
/// Rows of a packed at a time: with [`DEPTH`], a third of a second-level cache of 512 KiB for f32.
const ROWS: usize = 144;
/// Columns of b packed at a time.
const COLUMNS: usize = 1024;

/// The unit of the packing buffers, which keeps panels on cache lines.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

thread_local! {
    /// Packed a and packed b of this thread, kept from call to call.
    static PACKED: RefCell<[Vec<Line>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// The product as a [`Kernel`].
///
/// The maker promises that the three matrices are valid for reads (`a`, `b`, and `out` if `accumulate`) and writes
/// (`out`), that `out` overlaps neither and that nobody else touches it meanwhile.
pub(super) struct Product<F> {
    pub(super) out: MatMut<F>,
    pub(super) a: MatRef<F>,
    pub(super) b: MatRef<F>,
    pub(super) alpha: F,
    pub(super) accumulate: bool,
}

impl<F: Float> Kernel for Product<F> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        // Twelve to 24 sums of two vectors a row fill the registers of a path and hide the latency of its FMA.
        match (I::LANES, size_of::<F>()) {
            (16, 4) => self.blocked::<I, 12, 32>(isa),
            (16, _) => self.blocked::<I, 12, 16>(isa),
            (8, 4) => self.blocked::<I, 6, 16>(isa),
            (8, _) => self.blocked::<I, 6, 8>(isa),
            (_, 4) => self.blocked::<I, 6, 8>(isa),
            _ => self.blocked::<I, 6, 4>(isa),
        }
    }
}

impl<F: Float> Product<F> {
    #[inline(always)]
    fn blocked<I: Isa, const MR: usize, const NR: usize>(self, isa: I) {
        // Taken out, not borrowed in a closure: the thread-local's code is compiled for the baseline, and so would be
        // a closure that it calls.
        let [mut a_lines, mut b_lines] = PACKED.take();
        let depth = DEPTH.min(self.a.cols);
        let a_packed = buffer(&mut a_lines, ROWS.min(self.a.rows).next_multiple_of(MR) * depth);
        let b_packed = buffer(&mut b_lines, COLUMNS.min(self.b.cols).next_multiple_of(NR) * depth);
        for column in (0..self.out.cols).step_by(COLUMNS) {
            let columns = COLUMNS.min(self.out.cols - column);
            for k in (0..self.a.cols).step_by(DEPTH) {
                let depth = DEPTH.min(self.a.cols - k);
                // SAFETY: the block lies inside b, whose reads the maker of the product promised.
                unsafe { pack::<F, NR>(b_packed, self.b.block(k, column, depth, columns).t()) };
                for row in (0..self.out.rows).step_by(ROWS) {
                    let rows = ROWS.min(self.out.rows - row);
                    // SAFETY: as above, inside a.
                    unsafe { pack::<F, MR>(a_packed, self.a.block(row, k, rows, depth)) };
                    let out = self.out.block(row, column, rows, columns);
                    let accumulate = self.accumulate || k > 0;
                    // SAFETY: the block lies inside out, whose writes the maker promised.
                    unsafe {
                        panels::<F, I, MR, NR>(isa, out, a_packed, b_packed, depth, self.alpha, accumulate);
                    }
                }
            }
        }
        PACKED.set([a_lines, b_lines]);
    }
}

/// The first `length` values of a buffer, grown if need be.
fn buffer<F: Float>(lines: &mut Vec<Line>, length: usize) -> &mut [F] {
    let needed = (length * size_of::<F>()).div_ceil(size_of::<Line>());
    if lines.len() < needed {
        lines.resize(needed, Line([0; 64]));
    }
    &mut bytemuck::cast_slice_mut(lines)[..length]
}

/// Writes `matrix` [rows, depth] as panels of W rows, each [depth, W], rows beyond the last as zeros.
///
/// # Safety
/// `matrix` is valid for reads.
#[inline(always)]
unsafe fn pack<F: Float, const W: usize>(packed: &mut [F], matrix: MatRef<F>) {
    let depth = matrix.cols;
    let (panels, _) = packed.as_chunks_mut::<W>();
    for (panel, row) in panels.chunks_exact_mut(depth).zip((0..matrix.rows).step_by(W)) {
        let rows = W.min(matrix.rows - row);
        let source = matrix.block(row, 0, rows, depth);
        if rows < W {
            panel.fill([F::ZERO; W]);
            for i in 0..rows {
                for (k, values) in panel.iter_mut().enumerate() {
                    // SAFETY: i < rows and k < depth.
                    values[i] = unsafe { source.read(i, k) };
                }
            }
        } else if source.row_stride == 1 {
            for (k, values) in panel.iter_mut().enumerate() {
                // SAFETY: W rows with stride 1 are W values in a row.
                *values = unsafe { source.at(0, k).cast::<[F; W]>().read() };
            }
        } else {
            for (k, values) in panel.iter_mut().enumerate() {
                for (i, value) in values.iter_mut().enumerate() {
                    // SAFETY: i < rows and k < depth.
                    *value = unsafe { source.read(i, k) };
                }
            }
        }
    }
}

/// All register tiles of one packed block of a and b.
///
/// # Safety
/// `out` is valid for writes, and for reads if `accumulate`.
#[inline(always)]
unsafe fn panels<F: Float, I: Isa, const MR: usize, const NR: usize>(
    isa: I,
    out: MatMut<F>,
    a: &[F],
    b: &[F],
    depth: usize,
    alpha: F,
    accumulate: bool,
) {
    let (a, b) = (a.as_chunks::<MR>().0, b.as_chunks::<NR>().0);
    for (b, column) in b.chunks_exact(depth).zip((0..out.cols).step_by(NR)) {
        for (a, row) in a.chunks_exact(depth).zip((0..out.rows).step_by(MR)) {
            let sums = register_tile::<F, I, MR, NR>(isa, a, b);
            let tile = out.block(row, column, MR.min(out.rows - row), NR.min(out.cols - column));
            // SAFETY: the tile lies inside out.
            unsafe { store(isa, tile, &sums, alpha, accumulate) };
        }
    }
}

/// The sums over k of a panel of a and one of b. The loops unroll into MR x NR sums held in registers.
#[inline(always)]
fn register_tile<F: Float, I: Isa, const MR: usize, const NR: usize>(
    isa: I,
    a: &[[F; MR]],
    b: &[[F; NR]],
) -> [[F; NR]; MR] {
    let mut sums = [[F::ZERO; NR]; MR];
    for (a, b) in a.iter().zip(b) {
        for i in 0..MR {
            for j in 0..NR {
                sums[i][j] = F::fma(isa, a[i], b[j], sums[i][j]);
            }
        }
    }
    sums
}

/// out = alpha sums (+ out), for as many of the sums as out has rows and columns.
///
/// # Safety
/// `out`, at most [MR, NR], is valid for writes, and for reads if `accumulate`.
#[inline(always)]
unsafe fn store<F: Float, I: Isa, const MR: usize, const NR: usize>(
    isa: I,
    out: MatMut<F>,
    sums: &[[F; NR]; MR],
    alpha: F,
    accumulate: bool,
) {
    let whole = out.rows == MR && out.cols == NR && out.col_stride == 1;
    for (i, sums) in sums.iter().enumerate().take(out.rows) {
        if whole {
            // SAFETY: NR columns with stride 1 are NR values in a row.
            let row = unsafe { &mut *out.at(i, 0).cast::<[F; NR]>() };
            for (value, sum) in row.iter_mut().zip(sums) {
                *value = if accumulate { F::fma(isa, alpha, *sum, *value) } else { alpha * *sum };
            }
        } else {
            for (j, sum) in sums.iter().enumerate().take(out.cols) {
                // SAFETY: i < rows and j < cols.
                unsafe {
                    let value = out.at(i, j);
                    *value = if accumulate { F::fma(isa, alpha, *sum, *value) } else { alpha * *sum };
                }
            }
        }
    }
}
