//! The innermost loops: a register tile of MR x NR sums over a panel of a and one of b, and what becomes of the sums.

use super::super::cells::{Cell, Pairs, Wide};
use super::super::isa::{Isa, Kernel, Path, dispatch_bf16_on, dispatch_on, prefetch};
use super::super::math::Float;
use super::super::stored::Stored;
use super::ahead::Ahead;
use super::pack::Form;
use super::{Cells, DEPTH, Matrix, Values};
use half::bf16;
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

/// `out = alpha a b (+ sums) (+ addend)`, rounded to the type in which `out` is stored, for packed panels: `left` by
/// [`PackLeft`](super::pack::PackLeft), `right` by [`PackRight`](super::pack::PackRight).
///
/// The maker promises that `out` is valid for writes, sums and addend for reads; the sums, of products with earlier values of k, are stored in F, the
/// addend as `out` is. Either may be `out`.
pub(super) struct Panels<'a, F> {
    pub(super) out: Matrix<F>,
    pub(super) sums: Option<Matrix<F>>,
    pub(super) left: &'a [F],
    pub(super) form: Form,
    pub(super) right: &'a [F],
    pub(super) cells: Cells,
    pub(super) depth: usize,
    pub(super) alpha: F,
    pub(super) addend: Option<Matrix<F>>,
    /// What is asked for meanwhile, and how many lines of it for each tile.
    pub(super) ahead: &'a mut Ahead,
    pub(super) share: usize,
}

impl<F: Float> Panels<'_, F> {
    /// Computes them on `path`, which this processor must have.
    pub(super) fn multiply(self, path: Path) {
        match self.cells {
            Cells::Values => on_tile(path, By(self, PhantomData::<Wide<F>>)),
            Cells::Pairs => dispatch_bf16_on(path, OnTile(By(self, PhantomData::<Pairs>))),
        }
    }
}

/// Panels and how their cells are multiplied.
struct By<P, C>(P, PhantomData<C>);

impl<F: Float, C: Cell<F>> Tiled for By<Panels<'_, F>, C> {
    type Float = F;
    type Output = ();

    #[inline(always)]
    fn run<I: Isa, const MR: usize, const NR: usize>(self, isa: I) {
        match self.0.out.values {
            Values::Wide(_) => self.tiles::<I, F, MR, NR>(isa),
            Values::Bf16(_) => self.tiles::<I, bf16, MR, NR>(isa),
        }
    }
}

impl<F: Float, C: Cell<F>> By<Panels<'_, F>, C> {
    /// All tiles of an output that is stored in S.
    #[inline(always)]
    fn tiles<I: Isa, S: Output<F>, const MR: usize, const NR: usize>(self, isa: I) {
        let Panels { out, sums, left, form, right, depth, alpha, addend, ahead, share, .. } = self.0;
        let Matrix { rows, cols, .. } = out;
        let (out, addend) = (Places::<S>::of(out), addend.map(Places::<S>::of));
        let begun = sums.map(Places::<F>::of);
        for (right, column) in right.chunks_exact(depth * NR).zip((0..cols).step_by(NR)) {
            for (left, row) in left.chunks_exact(DEPTH * MR).zip((0..rows).step_by(MR)) {
                let (out, addend) = (out.from(row, column), addend.map(|addend| addend.from(row, column)));
                let begun = begun.map(|sums| sums.from(row, column));
                let size = [MR.min(rows - row), NR.min(cols - column)];
                ahead.ask(share);
                // Written once the sums are known.
                for i in 0..size[0] {
                    prefetch::<1, _>(out.at(i, 0));
                }
                // One place where sums go: the compiler keeps them in registers only if the loops of both forms end there.
                let sums = match form {
                    Form::Rows => register_tile::<F, I, C, MR, NR, DEPTH, 1>(isa, left, right),
                    Form::Columns => register_tile::<F, I, C, MR, NR, 1, MR>(isa, left, right),
                };
                // SAFETY: the tile lies inside the output, the sums and the addend.
                unsafe { store(isa, out, size, sums, alpha, begun, addend) };
            }
        }
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
    C: Cell<F>,
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
                C::add(isa, a(i, group * UNROLLED + k), b, sums);
            }
        }
    }
    for (k, b) in rest.iter().enumerate() {
        for (i, sums) in sums.iter_mut().enumerate() {
            C::add(isa, a(i, groups.len() * UNROLLED + k), b, sums);
        }
    }
    sums
}

/// A type in which an output is stored.
trait Output<F>: Stored<F> {
    /// The first of values stored in this type. Panics if they are stored in another.
    fn first(values: Values<F>) -> *mut Self;
}

impl<F: Float> Output<F> for F {
    #[inline(always)]
    fn first(values: Values<F>) -> *mut F {
        match values {
            Values::Wide(first) => first,
            Values::Bf16(_) => unreachable!("stored in bf16, not in the type that is computed in"),
        }
    }
}

impl<F: Float> Output<F> for bf16 {
    #[inline(always)]
    fn first(values: Values<F>) -> *mut bf16 {
        match values {
            Values::Bf16(first) => first,
            Values::Wide(_) => unreachable!("stored in the type that is computed in, not in bf16"),
        }
    }
}

/// Where the values of a matrix stand that is stored in S.
#[derive(Clone, Copy)]
struct Places<S> {
    first: *mut S,
    row_stride: isize,
    col_stride: isize,
}

impl<S: Copy> Places<S> {
    /// Those of `matrix`. Panics if it is stored in another type.
    #[inline(always)]
    fn of<F>(matrix: Matrix<F>) -> Self
    where
        S: Output<F>,
    {
        let Matrix { row_stride, col_stride, .. } = matrix;
        Places { first: S::first(matrix.values), row_stride, col_stride }
    }

    /// Those from (i, j) on.
    #[inline(always)]
    fn from(self, i: usize, j: usize) -> Self {
        Places { first: self.at(i, j), ..self }
    }

    #[inline(always)]
    fn at(self, i: usize, j: usize) -> *mut S {
        self.first.wrapping_offset(i as isize * self.row_stride + j as isize * self.col_stride)
    }

    /// The first N values of row i, which are contiguous.
    #[inline(always)]
    fn row<const N: usize>(self, i: usize) -> *mut [S; N] {
        self.at(i, 0).cast()
    }
}

/// `out = alpha sums (+ begun) (+ addend)` for the first `rows` and `cols` of the sums.
///
/// Loops over rows are written out: a closure given to `map` may stay a call, which is not compiled for the instruction path.
///
/// # Safety
/// As many places are valid, those of `out` for writes and those of the others for reads.
#[inline(always)]
unsafe fn store<F: Float, S: Stored<F>, I: Isa, const MR: usize, const NR: usize>(
    isa: I,
    out: Places<S>,
    [rows, cols]: [usize; 2],
    sums: [[F; NR]; MR],
    alpha: F,
    begun: Option<Places<F>>,
    addend: Option<Places<S>>,
) {
    let contiguous =
        [Some(out.col_stride), begun.map(|begun| begun.col_stride), addend.map(|addend| addend.col_stride)];
    if [rows, cols] == [MR, NR] && contiguous.into_iter().flatten().all(|stride| stride == 1) {
        for (i, sums) in sums.iter().enumerate() {
            let mut value = *sums;
            for value in &mut value {
                *value = alpha * *value;
            }
            if let Some(begun) = begun {
                // SAFETY: NR columns with stride 1 are NR values in a row.
                let begun = unsafe { *begun.row::<NR>(i) };
                for (value, begun) in value.iter_mut().zip(&begun) {
                    *value += *begun;
                }
            }
            if let Some(addend) = addend {
                // SAFETY: as above.
                let addend = unsafe { *addend.row::<NR>(i) };
                for (value, addend) in value.iter_mut().zip(&addend) {
                    *value += addend.wide();
                }
            }
            // SAFETY: as above.
            unsafe { S::put(isa, &value, &mut *out.row(i)) };
        }
        return;
    }
    // A copy, so that the sums of whole tiles stay in registers although these are reached by index.
    let sums = std::hint::black_box(sums);
    for (i, sums) in sums.iter().enumerate().take(rows) {
        for (j, sum) in sums.iter().enumerate().take(cols) {
            // SAFETY: i and j are below the rows and columns of the places.
            unsafe {
                let begun = begun.map_or(F::ZERO, |begun| *begun.at(i, j));
                let addend = addend.map_or(F::ZERO, |addend| (*addend.at(i, j)).wide());
                S::put(isa, &[alpha * *sum + begun + addend], &mut *out.at(i, j).cast());
            }
        }
    }
}
