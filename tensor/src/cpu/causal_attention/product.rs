//! Products of small matrices in a task's scratch: `c = start + a b`, a [m, k] read value by value, b [k, n] and c [m, n] vector by
//! vector, in cells of one value or of two along k. A tile's sums, of rows of N columns, two vectors each, stay in registers over all of k. 2 m k n FLOPs a
//! value.

use crate::cpu::cells::Cell;
use crate::cpu::isa::Isa;
use crate::cpu::math::Float;

/// The factor that is read cell by cell: (i, k) stands at `i * row + k * step`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a, F> {
    pub(super) values: &'a [F],
    pub(super) row: usize,
    pub(super) step: usize,
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a, F, const N: usize> {
    Zeros,
    /// A row for each row of c, which has N columns.
    Row(&'a [F; N]),
    /// What c holds.
    Sums,
}

/// Rows of c in registers: sums of two vectors a row hide the latency of the multiply-add, and leave room for a row of b. AVX-512 has 32 registers, and
/// most blocks are a multiple of eight.
pub(super) const fn rows<I: Isa>() -> usize {
    if I::LANES == 16 { 8 } else { 6 }
}

/// `c = start + a b`, k cells deep; rows of b and c start `b_row` and `c_row` values apart; n is a multiple of N.
#[inline(always)]
pub(super) fn product<F: Float, C: Cell<F>, I: Isa, const N: usize>(
    isa: I,
    [m, k, n]: [usize; 3],
    start: Start<F, N>,
    a: Left<F>,
    (b, b_row): (&[F], usize),
    (c, c_row): (&mut [F], usize),
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(n.is_multiple_of(N));
    let last = k.saturating_sub(1);
    assert!(k == 0 || (m - 1) * a.row + last * a.step < a.values.len(), "a [{m}, {k}] is inside its slice");
    assert!(k == 0 || last * b_row + n <= b.len(), "b [{k}, {n}] is inside its slice");
    assert!((m - 1) * c_row + n <= c.len(), "c [{m}, {n}] is inside its slice");
    for column in (0..n).step_by(N) {
        let mut row = 0;
        while row < m {
            // With k = 0 nothing is read of a and b, which may be empty.
            let a = Left { values: a.values.get(row * a.row..).unwrap_or_default(), ..a };
            let b = (b.get(column..).unwrap_or_default(), b_row);
            let c = (&mut c[row * c_row + column..], c_row);
            // SAFETY: the assertions above, for a tile of the product of no more rows than are left.
            row += unsafe {
                match m - row {
                    1 => tile::<F, C, I, 1, N>(isa, k, start, a, b, c),
                    2 | 3 => tile::<F, C, I, 2, N>(isa, k, start, a, b, c),
                    4 | 5 => tile::<F, C, I, 4, N>(isa, k, start, a, b, c),
                    6 | 7 => tile::<F, C, I, 6, N>(isa, k, start, a, b, c),
                    _ if rows::<I>() == 6 => tile::<F, C, I, 6, N>(isa, k, start, a, b, c),
                    _ => tile::<F, C, I, 8, N>(isa, k, start, a, b, c),
                }
            };
        }
    }
}

/// M rows and N columns of the product; gives M.
///
/// # Safety
/// a [M, k], b [k, N] and c [M, N] lie inside their slices.
#[inline(always)]
unsafe fn tile<F: Float, C: Cell<F>, I: Isa, const M: usize, const N: usize>(
    isa: I,
    depth: usize,
    start: Start<F, N>,
    a: Left<F>,
    (b, b_row): (&[F], usize),
    (c, c_row): (&mut [F], usize),
) -> usize {
    let mut sums = [[F::ZERO; N]; M];
    for (i, sums) in sums.iter_mut().enumerate() {
        match start {
            Start::Zeros => {}
            Start::Row(row) => *sums = *row,
            // SAFETY: row i of c, by the caller's promise.
            Start::Sums => *sums = unsafe { *c.as_ptr().add(i * c_row).cast::<[F; N]>() },
        }
    }
    for k in 0..depth {
        // SAFETY: row k of b, by the caller's promise.
        let b = unsafe { &*b.as_ptr().add(k * b_row).cast::<[F; N]>() };
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: (i, k) of a, by the caller's promise.
            let a = unsafe { *a.values.get_unchecked(i * a.row + k * a.step) };
            C::add(isa, a, b, sums);
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        // SAFETY: as above.
        unsafe { *c.as_mut_ptr().add(i * c_row).cast::<[F; N]>() = *sums };
    }
    M
}
