//! The innermost loops: a register tile of MR x NR sums over a panel of a and one of b, and what becomes of the sums.

use super::super::isa::{Isa, Kernel, Path, dispatch_bf16_on, dispatch_on};
use super::super::math::Float;
use super::pack::Form;
use super::{Cells, DEPTH, Matrix, Values};
use std::marker::PhantomData;

/// Work compiled once for each instruction path and its register tile.
pub(super) trait Tiled {
    /// What is computed in.
    type Float: Float;
    /// What the work returns.
    type Output;
    /// Does the work with the instructions of `isa` and tiles of MR x NR. Mark it `#[inline(always)]`, and what it calls.
    fn run<I: Isa, const MR: usize, const NR: usize>(self, isa: I) -> Self::Output;
}

/// Runs `work` on `path`, which this processor must have, with the path's tile.
pub(super) fn on_tile<W: Tiled>(path: Path, work: W) -> W::Output {
    dispatch_on(path, OnTile(work))
}

/// A [`Tiled`] as a [`Kernel`]: 12 to 24 vectors of sums hide the latency of the multiply-add, and fill the registers together with a row
/// of b and a value of a.
struct OnTile<W>(W);

impl<W: Tiled> Kernel for OnTile<W> {
    type Output = W::Output;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> W::Output {
        match (I::LANES, size_of::<W::Float>()) {
            (16, 4) => self.0.run::<I, 12, 32>(isa),
            (16, _) => self.0.run::<I, 12, 16>(isa),
            (8, 4) => self.0.run::<I, 6, 16>(isa),
            (8, _) => self.0.run::<I, 6, 8>(isa),
            // 32 registers instead of 16.
            (_, 4) if cfg!(target_arch = "aarch64") => self.0.run::<I, 8, 12>(isa),
            (_, _) if cfg!(target_arch = "aarch64") => self.0.run::<I, 6, 8>(isa),
            (_, 4) => self.0.run::<I, 6, 8>(isa),
            (_, _) => self.0.run::<I, 6, 4>(isa),
        }
    }
}

/// Rows and columns of the register tile of a path.
pub(super) fn tile<F: Float>(path: Path) -> (usize, usize) {
    struct Shape<F>(PhantomData<F>);

    impl<F: Float> Tiled for Shape<F> {
        type Float = F;
        type Output = (usize, usize);

        #[inline(always)]
        fn run<I: Isa, const MR: usize, const NR: usize>(self, _: I) -> (usize, usize) {
            (MR, NR)
        }
    }

    on_tile(path, Shape::<F>(PhantomData))
}

/// `out = alpha a b (+ addend)` for packed panels: `left` by [`PackLeft`](super::pack::PackLeft), `right` by
/// [`PackRight`](super::pack::PackRight).
///
/// The maker promises that `out` is valid for writes and the addend for reads, both stored in F.
pub(super) struct Panels<'a, F> {
    pub(super) out: Matrix<F>,
    pub(super) left: &'a [F],
    pub(super) form: Form,
    pub(super) right: &'a [F],
    pub(super) cells: Cells,
    pub(super) depth: usize,
    pub(super) alpha: F,
    pub(super) addend: Option<Matrix<F>>,
}

impl<F: Float> Panels<'_, F> {
    /// Computes them on `path`, which this processor must have.
    pub(super) fn multiply(self, path: Path) {
        match self.cells {
            Cells::Values => on_tile(path, By(self, OfValues)),
            Cells::Pairs => dispatch_bf16_on(path, OnTile(By(self, OfPairs))),
        }
    }
}

/// Panels and how their cells are multiplied.
struct By<P, M>(P, M);

impl<F: Float, M: Multiply> Tiled for By<Panels<'_, F>, M> {
    type Float = F;
    type Output = ();

    #[inline(always)]
    fn run<I: Isa, const MR: usize, const NR: usize>(self, isa: I) {
        let Panels { out: Matrix { rows, cols, .. }, left, form, right, depth, alpha, .. } = self.0;
        let (out, addend) = (Places::of(self.0.out), self.0.addend.map(Places::of));
        for (right, column) in right.chunks_exact(depth * NR).zip((0..cols).step_by(NR)) {
            for (left, row) in left.chunks_exact(DEPTH * MR).zip((0..rows).step_by(MR)) {
                let (out, addend) = (out.from(row, column), addend.map(|addend| addend.from(row, column)));
                let size = [MR.min(rows - row), NR.min(cols - column)];
                for i in 0..size[0] {
                    prefetch(out.at(i, 0));
                }
                // One place where sums go: the compiler keeps them in registers only if the loops of both forms end there.
                let sums = match form {
                    Form::Rows => register_tile::<F, I, M, MR, NR, DEPTH, 1>(isa, left, right),
                    Form::Columns => register_tile::<F, I, M, MR, NR, 1, MR>(isa, left, right),
                };
                // SAFETY: the tile lies inside the output and the addend.
                unsafe { store(isa, out, size, sums, alpha, addend) };
            }
        }
    }
}

/// Asks for the cache line at `place`, which is written after the sums are known.
#[inline(always)]
fn prefetch<F>(place: *const F) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint; any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Products of cells.
trait Multiply {
    /// `sums += a * b`, for each of `b`.
    fn add<F: Float, I: Isa, const NR: usize>(isa: I, a: F, b: &[F; NR], sums: &mut [F; NR]);
}

/// Of [`Cells::Values`].
struct OfValues;

impl Multiply for OfValues {
    #[inline(always)]
    fn add<F: Float, I: Isa, const NR: usize>(isa: I, a: F, b: &[F; NR], sums: &mut [F; NR]) {
        F::axpy(isa, a, b, sums);
    }
}

/// Of [`Cells::Pairs`], where F is f32.
struct OfPairs;

impl Multiply for OfPairs {
    #[inline(always)]
    fn add<F: Float, I: Isa, const NR: usize>(_: I, a: F, b: &[F; NR], sums: &mut [F; NR]) {
        I::dot_pairs(bytemuck::cast_slice(&[a])[0], bytemuck::cast_slice(b), bytemuck::cast_slice_mut(sums));
    }
}

/// Values of k in one turn of a register tile's loop. Counting takes 3 of the 23 instructions of a turn over one value, which shows where the core is
/// shared with another thread: 4 to 8% of a product. With 8 values compilers run out of registers.
const UNROLLED: usize = 4;

/// The sums over k of a panel of a, whose value (i, k) stands at `i * ROW + k * STEP`, and one of b, [k, NR]. The loops unroll
/// into MR x NR sums held in registers.
#[inline(always)]
fn register_tile<
    F: Float,
    I: Isa,
    M: Multiply,
    const MR: usize,
    const NR: usize,
    const ROW: usize,
    const STEP: usize,
>(
    isa: I,
    left: &[F],
    right: &[F],
) -> [[F; NR]; MR] {
    let (right, _) = right.as_chunks::<NR>();
    assert!(right.is_empty() || (MR - 1) * ROW + (right.len() - 1) * STEP < left.len());
    // SAFETY: the assertion above.
    let a = |i: usize, k: usize| unsafe { *left.get_unchecked(i * ROW + k * STEP) };
    let mut sums = [[F::ZERO; NR]; MR];
    let (groups, rest) = right.as_chunks::<UNROLLED>();
    for (group, rows) in groups.iter().enumerate() {
        for (k, b) in rows.iter().enumerate() {
            for (i, sums) in sums.iter_mut().enumerate() {
                M::add(isa, a(i, group * UNROLLED + k), b, sums);
            }
        }
    }
    for (k, b) in rest.iter().enumerate() {
        for (i, sums) in sums.iter_mut().enumerate() {
            M::add(isa, a(i, groups.len() * UNROLLED + k), b, sums);
        }
    }
    sums
}

/// Where the values of a matrix stand that is stored in F.
#[derive(Clone, Copy)]
struct Places<F> {
    first: *mut F,
    row_stride: isize,
    col_stride: isize,
}

impl<F: Float> Places<F> {
    /// Those of `matrix`. Panics if it is stored in another type.
    fn of(matrix: Matrix<F>) -> Self {
        let Matrix { row_stride, col_stride, .. } = matrix;
        match matrix.values {
            Values::Wide(first) => Places { first, row_stride, col_stride },
            Values::Bf16(_) => unreachable!("sums are kept in the type that is computed in"),
        }
    }

    /// Those from (i, j) on.
    #[inline(always)]
    fn from(self, i: usize, j: usize) -> Self {
        Places { first: self.at(i, j), ..self }
    }

    #[inline(always)]
    fn at(self, i: usize, j: usize) -> *mut F {
        self.first.wrapping_offset(i as isize * self.row_stride + j as isize * self.col_stride)
    }

    /// The first N values of row i, which are contiguous.
    #[inline(always)]
    fn row<const N: usize>(self, i: usize) -> *mut [F; N] {
        self.at(i, 0).cast()
    }
}

/// `out = alpha sums (+ addend)` for the first `rows` and `cols` of the sums.
///
/// # Safety
/// As many places are valid, those of `out` for writes and those of the addend for reads.
#[inline(always)]
unsafe fn store<F: Float, I: Isa, const MR: usize, const NR: usize>(
    isa: I,
    out: Places<F>,
    [rows, cols]: [usize; 2],
    sums: [[F; NR]; MR],
    alpha: F,
    addend: Option<Places<F>>,
) {
    if [rows, cols] == [MR, NR] && out.col_stride == 1 && addend.is_none_or(|addend| addend.col_stride == 1) {
        for (i, sums) in sums.iter().enumerate() {
            let value = match addend {
                Some(addend) => {
                    // SAFETY: NR columns with stride 1 are NR values in a row.
                    let addend = unsafe { *addend.row::<NR>(i) };
                    std::array::from_fn(|j| F::fma(isa, alpha, sums[j], addend[j]))
                }
                None => sums.map(|sum| alpha * sum),
            };
            // SAFETY: as above.
            unsafe { *out.row(i) = value };
        }
        return;
    }
    // A copy, so that the sums of whole tiles stay in registers although these are reached by index.
    let sums = std::hint::black_box(sums);
    for (i, sums) in sums.iter().enumerate().take(rows) {
        for (j, sum) in sums.iter().enumerate().take(cols) {
            // SAFETY: i and j are below the rows and columns of the places.
            unsafe {
                *out.at(i, j) = match addend {
                    Some(addend) => F::fma(isa, alpha, *sum, *addend.at(i, j)),
                    None => alpha * *sum,
                };
            }
        }
    }
}

/// `out = sums (+ addend)`, rounded to the type in which `out` is stored. Rows of `sums` start `pitch` values apart.
///
/// The maker promises that `out` is valid for writes and the addend for reads.
pub(super) struct Finish<'a, F> {
    pub(super) out: Matrix<F>,
    pub(super) sums: &'a [F],
    pub(super) pitch: usize,
    pub(super) addend: Option<Matrix<F>>,
}

impl<F: Float> Kernel for Finish<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        for (i, sums) in self.sums.chunks(self.pitch.max(1)).enumerate().take(self.out.rows) {
            for (j, &sum) in sums[..self.out.cols].iter().enumerate() {
                // SAFETY: (i, j) lies inside the matrix, by the maker's promise.
                unsafe { self.out.put(i, j, sum, self.addend) };
            }
        }
    }
}
