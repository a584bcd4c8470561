//! The innermost loops: a register tile of MR x NR sums over a panel of a and one of b, and what becomes of the sums.

use super::super::buffer::LINE;
use super::super::cells::{Cell, Pairs, Wide};
use super::super::isa::{Isa, Kernel, Path, dispatch_bf16_on, dispatch_on, prefetch};
use super::super::math::Float;
use super::super::stored::Stored;
use super::super::stream;
use super::ahead::{Ahead, Piece};
use super::factors::{Left, Lines, Order, Right};
use super::{Cells, Matrix, Values};
use half::bf16;
use std::array;
use std::hint::black_box;
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

/// `out = alpha a b (+ sums) (+ addend)`, rounded to the type in which `out` is stored, for `depth` cells along k of `left` and `right`, in place or packed by
/// [`PackLeft`](super::pack::PackLeft) and [`PackRight`](super::pack::PackRight).
///
/// The maker promises that the factors, sums and addend are valid for reads, and `out` for writes; the sums, of products with earlier values of k, are stored in F,
/// the addend as `out` is. Either may be `out`.
pub(super) struct Panels<'a, F> {
    pub(super) out: Matrix<F>,
    pub(super) sums: Option<Matrix<F>>,
    pub(super) left: Left<F>,
    pub(super) right: Right<F>,
    pub(super) cells: Cells,
    pub(super) depth: usize,
    pub(super) alpha: F,
    pub(super) addend: Option<Matrix<F>>,
    /// What is asked for meanwhile.
    pub(super) ahead: &'a mut Ahead,
    /// Whether the output goes past the caches where it can; the user then calls [`stream::fence`]. It must not be added to.
    pub(super) past_caches: bool,
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
        let Panels { out, sums, left, right, depth, alpha, addend, ahead, past_caches, .. } = self.0;
        let Matrix { rows, cols, .. } = out;
        let (out, addend) = (Places::<S>::of(out), addend.map(Places::<S>::of));
        let begun = sums.map(Places::<F>::of);
        let past_caches =
            past_caches && stream::has_put::<I>() && alpha == F::ONE && begun.is_none() && out.in_lines(NR);
        for (panel, column) in (0..cols).step_by(NR).enumerate() {
            let (right, packed) = (right.panel(panel), right.packed);
            for (tile, row) in (0..rows).step_by(MR).enumerate() {
                let (out, addend) = (out.from(row, column), addend.map(|addend| addend.from(row, column)));
                let begun = begun.map(|sums| sums.from(row, column));
                let size = [MR.min(rows - row), NR.min(cols - column)];
                let ahead = ahead.next();
                if !has_room::<I>() {
                    ahead.ask();
                }
                if !past_caches {
                    // Written once the sums are known.
                    for i in 0..size[0] {
                        for j in (0..size[1]).step_by(LINE / size_of::<S>()) {
                            prefetch::<1, _>(out.at(i, j));
                        }
                    }
                }
                let lines = left.tile(tile);
                // One place where sums go: the compiler keeps them in registers only if all loops end there.
                // SAFETY: the maker's promise.
                let sums = unsafe {
                    match left.order {
                        // Pairs of b never stand in place.
                        Order::Rows if packed || C::VALUES > 1 => {
                            let a = rows_at::<F, MR>(lines, has_room::<I>());
                            register_tile::<F, I, C, MR, NR, true>(isa, a, right, depth, ahead)
                        }
                        Order::Rows => {
                            let a = rows_at::<F, MR>(lines, true);
                            register_tile::<F, I, C, MR, NR, false>(isa, a, right, depth, ahead)
                        }
                        Order::Columns if C::VALUES > 1 => {
                            register_tile::<F, I, C, MR, NR, true>(isa, columns_at(lines), right, depth, ahead)
                        }
                        Order::Columns => {
                            register_tile::<F, I, C, MR, NR, false>(isa, columns_at(lines), right, depth, ahead)
                        }
                    }
                };
                // SAFETY: the tile lies inside the output, the sums and the addend.
                unsafe { store(isa, (out, past_caches), size, sums, alpha, (begun, addend)) };
            }
        }
    }
}

/// Values of k in one turn of a register tile's loop. Counting takes 3 of the 23 instructions of a turn over one value, which shows where the core is
/// shared with another thread: 4 to 8% of a product. With 8 values compilers run out of registers.
const UNROLLED: usize = 4;

/// Whether a core has slots left beside a tile's products, to ask for memory in the loop: with 16 values in a vector a product takes a cycle, with fewer half of one.
const fn has_room<I: Isa>() -> bool {
    I::LANES >= 16
}

/// The addresses of cells (i, k) of MR rows, which are lines. If they are to be hidden, those of every third row, and no others, stand before the tile's loop, their distance
/// hidden from the compiler: where b has a stride too, or the loop has another address, registers for the address of every row are too few, and a product takes half as
/// long again.
#[inline(always)]
fn rows_at<F: Copy, const MR: usize>(left: Lines<F>, hidden: bool) -> impl Fn(usize, usize) -> *const F {
    const { assert!(MR <= 12, "four thirds have twelve rows") };
    let mut thirds: [*const F; 4] = array::from_fn(|third| left.from(3 * third, 0).first);
    if hidden {
        thirds = black_box(thirds);
    }
    move |i, k| thirds[i / 3].wrapping_offset((i % 3) as isize * left.stride).wrapping_add(k)
}

/// The same where lines are columns, none hidden.
#[inline(always)]
fn columns_at<F: Copy>(left: Lines<F>) -> impl Fn(usize, usize) -> *const F {
    move |i, k| left.from(k, i).first
}

/// The sums over k of MR rows of a, of whose cells `a` gives the addresses, and NR columns of b, PACKED or in place. The loops unroll into MR x NR sums held in
/// registers.
///
/// # Safety
/// `depth` cells along k of these are valid for reads.
#[inline(always)]
unsafe fn register_tile<F: Float, I: Isa, C: Cell<F>, const MR: usize, const NR: usize, const PACKED: bool>(
    isa: I,
    a: impl Fn(usize, usize) -> *const F,
    right: Lines<F>,
    depth: usize,
    ahead: Piece,
) -> [[F; NR]; MR] {
    let stride = if PACKED { NR as isize } else { right.stride };
    // SAFETY: the caller's promise; rows of b are of values, which are aligned, or packed.
    let b = |k: usize| unsafe { *right.first.offset(k as isize * stride).cast::<[F; NR]>() };
    // SAFETY: the caller's promise.
    let a = |i: usize, k: usize| unsafe { a(i, k).read_unaligned() };
    let mut sums = [[F::ZERO; NR]; MR];
    let whole = depth - depth % UNROLLED;
    // A little of it in each turn: all at once it keeps the rows of b waiting.
    let mut ahead = ahead.in_steps(whole / UNROLLED);
    for group in (0..whole).step_by(UNROLLED) {
        for k in group..group + UNROLLED {
            let b = b(k);
            for (i, sums) in sums.iter_mut().enumerate() {
                C::add(isa, a(i, k), &b, sums);
            }
        }
        if has_room::<I>() {
            ahead.ask();
        }
    }
    for k in whole..depth {
        let b = b(k);
        for (i, sums) in sums.iter_mut().enumerate() {
            C::add(isa, a(i, k), &b, sums);
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

    /// Whether rows of tiles of `columns` columns are whole cache lines.
    fn in_lines(self, columns: usize) -> bool {
        let bytes = |values: isize| values * size_of::<S>() as isize;
        self.first.addr().is_multiple_of(LINE)
            && self.col_stride == 1
            && [self.row_stride, columns as isize].iter().all(|values| bytes(*values) % LINE as isize == 0)
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
/// As many places are valid, those of `out` for writes and those of the others for reads. What goes past the caches is in whole lines.
#[inline(always)]
unsafe fn store<F: Float, S: Stored<F>, I: Isa, const MR: usize, const NR: usize>(
    isa: I,
    (out, past_caches): (Places<S>, bool),
    [rows, cols]: [usize; 2],
    sums: [[F; NR]; MR],
    alpha: F,
    (begun, addend): (Option<Places<F>>, Option<Places<S>>),
) {
    let contiguous =
        [Some(out.col_stride), begun.map(|begun| begun.col_stride), addend.map(|addend| addend.col_stride)];
    if [rows, cols] == [MR, NR] && contiguous.into_iter().flatten().all(|stride| stride == 1) {
        // Cases before rows: so the loops unroll, and no sum leaves its register before it goes to the output.
        // SAFETY: NR columns with stride 1 are NR values in a row.
        unsafe {
            match (alpha == F::ONE, begun, addend) {
                (true, None, None) if past_caches => {
                    for (i, sums) in sums.iter().enumerate() {
                        put_past_caches(isa, sums, out.row::<NR>(i));
                    }
                }
                (true, None, Some(addend)) if past_caches => {
                    for (i, sums) in sums.iter().enumerate() {
                        put_past_caches(isa, &plus(isa, *sums, &S::get(isa, &*addend.row(i))), out.row::<NR>(i));
                    }
                }
                (true, None, None) => {
                    for (i, sums) in sums.iter().enumerate() {
                        S::put(isa, sums, &mut *out.row(i));
                    }
                }
                (true, Some(begun), None) => {
                    for (i, sums) in sums.iter().enumerate() {
                        S::put(isa, &plus(isa, *sums, &*begun.row(i)), &mut *out.row(i));
                    }
                }
                (true, None, Some(addend)) => {
                    for (i, sums) in sums.iter().enumerate() {
                        S::put(isa, &plus(isa, *sums, &S::get(isa, &*addend.row(i))), &mut *out.row(i));
                    }
                }
                _ => {
                    for (i, sums) in black_box(sums).iter().enumerate() {
                        let mut value = *sums;
                        for value in &mut value {
                            *value = alpha * *value;
                        }
                        if let Some(begun) = begun {
                            value = plus(isa, value, &*begun.row(i));
                        }
                        if let Some(addend) = addend {
                            value = plus(isa, value, &S::get(isa, &*addend.row(i)));
                        }
                        S::put(isa, &value, &mut *out.row(i));
                    }
                }
            }
        }
        return;
    }
    // A copy, so that the sums of whole tiles stay in registers although these are reached by index.
    let sums = black_box(sums);
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

/// Stores values, rounded to nearest even, past the caches.
///
/// # Safety
/// As [`stream::put`].
#[inline(always)]
unsafe fn put_past_caches<F: Float, S: Stored<F>, I: Isa, const N: usize>(isa: I, values: &[F; N], to: *mut [S; N]) {
    let mut stored = [S::zeroed(); N];
    S::put(isa, values, &mut stored);
    // SAFETY: the caller's promise.
    unsafe { stream::put(isa, &stored, to) };
}

/// `x + y`.
#[inline(always)]
fn plus<F: Float, I: Isa, const N: usize>(isa: I, mut x: [F; N], y: &[F; N]) -> [F; N] {
    F::axpy(isa, F::ONE, y, &mut x);
    x
}
