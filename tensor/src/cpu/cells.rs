//! Cells, of which the factors of products are made: a value in the type that is computed in, or a pair of neighbours in bf16 along the dimension that is
//! summed over, where the processor multiplies those as they are.

use super::isa::Isa;
use super::math::Float;
use super::stored::Stored;
use super::transpose::SQUARE;
use half::bf16;
use std::marker::PhantomData;

/// How a cell is made of what is stored, and multiplied. Pairs stand in an F, which is f32 then.
pub(super) trait Cell<F: Float>: 'static {
    /// What is stored.
    type Stored: Stored<F>;
    /// Values in a cell.
    const VALUES: usize = 1;

    /// The cell that begins with the value at `place`; the next value stands `step` further on.
    ///
    /// # Safety
    /// The values are valid for reads.
    unsafe fn cell(place: *const Self::Stored, step: isize) -> F;

    /// [`SQUARE`] cells of values that stand one after the other.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn line(place: *const Self::Stored) -> [F; SQUARE] {
        // SAFETY: the caller's promise.
        std::array::from_fn(|i| unsafe { Self::cell(place.wrapping_add(i * Self::VALUES), 1) })
    }

    /// The cell of the value at `place` alone.
    ///
    /// # Safety
    /// As above, for this value.
    unsafe fn alone(place: *const Self::Stored) -> F;

    /// Values that stand one after the other, as cells; the last of an odd number is one of its own.
    fn neighbours(values: &[Self::Stored], to: &mut [F]);

    /// The cells of values that stand at the same places of two rows, or of one row where a cell is one value or there is no other.
    fn join<I: Isa>(isa: I, first: &[Self::Stored], second: Option<&[Self::Stored]>, to: &mut [F]);

    /// [`Cell::neighbours`] of N values that were computed, at the beginning of `to`.
    fn round_neighbours<I: Isa, const N: usize>(isa: I, values: &[F; N], to: &mut [F]);

    /// [`Cell::join`] of two rows that were computed.
    fn round_join<I: Isa, const N: usize>(isa: I, first: &[F; N], second: &[F; N], to: &mut [F; N]);

    /// `sums += a * b`, for each of `b`.
    fn add<I: Isa, const N: usize>(isa: I, a: F, b: &[F; N], sums: &mut [F; N]);
}

/// Values stored in S, read as F.
pub(super) struct Wide<S>(PhantomData<S>);

impl<F: Float, S: Stored<F> + 'static> Cell<F> for Wide<S> {
    type Stored = S;

    #[inline(always)]
    unsafe fn cell(place: *const S, _: isize) -> F {
        // SAFETY: the caller's promise.
        unsafe { *place }.wide()
    }

    #[inline(always)]
    unsafe fn line(place: *const S) -> [F; SQUARE] {
        // SAFETY: the caller's promise.
        unsafe { place.cast::<[S; SQUARE]>().read_unaligned() }.map(Stored::wide)
    }

    #[inline(always)]
    unsafe fn alone(place: *const S) -> F {
        // SAFETY: the caller's promise.
        unsafe { *place }.wide()
    }

    #[inline(always)]
    fn neighbours(values: &[S], to: &mut [F]) {
        for (to, value) in to.iter_mut().zip(values) {
            *to = value.wide();
        }
    }

    #[inline(always)]
    fn join<I: Isa>(_: I, first: &[S], _: Option<&[S]>, to: &mut [F]) {
        Self::neighbours(first, to);
    }

    #[inline(always)]
    fn round_neighbours<I: Isa, const N: usize>(_: I, values: &[F; N], to: &mut [F]) {
        to[..N].copy_from_slice(values);
    }

    #[inline(always)]
    fn round_join<I: Isa, const N: usize>(_: I, first: &[F; N], _: &[F; N], to: &mut [F; N]) {
        *to = *first;
    }

    #[inline(always)]
    fn add<I: Isa, const N: usize>(isa: I, a: F, b: &[F; N], sums: &mut [F; N]) {
        F::axpy(isa, a, b, sums);
    }
}

/// Pairs of bf16, the first in the lower half; after the last of an odd number comes a zero. Neighbours in memory are pairs as they are, on the
/// processors that multiply them: their bytes come in order of significance.
pub(super) struct Pairs;

/// The bits of a pair as an f32.
#[inline(always)]
fn pair<F: Float>(first: u16, second: u16) -> F {
    bytemuck::cast_slice(&[u32::from(first) | u32::from(second) << 16])[0]
}

impl<F: Float> Cell<F> for Pairs {
    type Stored = bf16;
    const VALUES: usize = 2;

    #[inline(always)]
    unsafe fn cell(place: *const bf16, step: isize) -> F {
        // SAFETY: the caller's promise.
        let [first, second] = unsafe { [*place, *place.wrapping_offset(step)] };
        pair(first.to_bits(), second.to_bits())
    }

    #[inline(always)]
    unsafe fn alone(place: *const bf16) -> F {
        // SAFETY: the caller's promise.
        pair(unsafe { *place }.to_bits(), 0)
    }

    #[inline(always)]
    unsafe fn line(place: *const bf16) -> [F; SQUARE] {
        // SAFETY: the caller's promise; as many bytes as these pairs, whose bits are values of any kind.
        unsafe { place.cast::<[F; SQUARE]>().read_unaligned() }
    }

    #[inline(always)]
    fn neighbours(values: &[bf16], to: &mut [F]) {
        let cells = &mut to[..values.len().div_ceil(2)];
        if let Some(last) = cells.last_mut() {
            *last = F::ZERO;
        }
        bytemuck::cast_slice_mut::<F, bf16>(cells)[..values.len()].copy_from_slice(values);
    }

    #[inline(always)]
    fn join<I: Isa>(_: I, first: &[bf16], second: Option<&[bf16]>, to: &mut [F]) {
        let to = &mut to[..first.len()];
        match second {
            Some(second) => {
                I::join_bf16(bytemuck::cast_slice(first), bytemuck::cast_slice(second), bytemuck::cast_slice_mut(to));
            }
            None => to.iter_mut().zip(first).for_each(|(to, first)| *to = pair(first.to_bits(), 0)),
        }
    }

    #[inline(always)]
    fn round_neighbours<I: Isa, const N: usize>(_: I, values: &[F; N], to: &mut [F]) {
        I::round_bf16(bytemuck::cast_slice(values), bytemuck::cast_slice_mut(&mut to[..N / 2]));
    }

    #[inline(always)]
    fn round_join<I: Isa, const N: usize>(_: I, first: &[F; N], second: &[F; N], to: &mut [F; N]) {
        I::round_pairs(bytemuck::cast_slice(first), bytemuck::cast_slice(second), bytemuck::cast_slice_mut(to));
    }

    #[inline(always)]
    fn add<I: Isa, const N: usize>(_: I, a: F, b: &[F; N], sums: &mut [F; N]) {
        I::dot_pairs(bytemuck::cast_slice(&[a])[0], bytemuck::cast_slice(b), bytemuck::cast_slice_mut(sums));
    }
}
