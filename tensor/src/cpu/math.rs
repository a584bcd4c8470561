//! Elementary functions and reductions for kernels: branch-free scalar bodies, `#[inline(always)]` and generic over
//! the instruction path, that the compiler vectorises in loops under [`dispatch`](super::isa::dispatch).
//! f32: exp within 1.1 units in the last place, tanh and sigmoid within 3 (2 more each without FMA). f64: the standard library's.
//! Reductions keep [`ACCUMULATORS`] partial values, element i going to number i mod that, and fold them in halves.

use super::isa::Isa;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// bf16 bits as f32: exact.
#[inline(always)]
pub(crate) fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// f32 as bf16 bits, to nearest even; a NaN stays one.
#[inline(always)]
pub(crate) fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    (if x.is_nan() { quiet } else { nearest }) as u16
}

/// A type that kernels compute in: f32, or f64 where precision matters more than speed.
pub(crate) trait Float:
    Copy
    + Send
    + Sync
    + PartialEq
    + PartialOrd
    + Default
    + std::fmt::Debug
    + std::fmt::Display
    + bytemuck::Pod
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Minus infinity, where a running maximum starts.
    const NEG_INFINITY: Self;
    /// Rounds to nearest.
    fn from_f64(value: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
    /// e^self; 0 at minus infinity, infinity where it overflows, NaN of NaN.
    fn exp<I: Isa>(self, isa: I) -> Self;
    /// e^self for self up to 88, as a softmax needs it: 0 where the result would be subnormal, below -87.33; NaN of NaN.
    fn exp_flushed<I: Isa>(self, isa: I) -> Self;
    /// Hyperbolic tangent; keeps the sign of zero, NaN of NaN.
    fn tanh<I: Isa>(self, isa: I) -> Self;
    /// 1 / (1 + e^-self); NaN of NaN.
    fn sigmoid<I: Isa>(self, isa: I) -> Self;
    /// Natural logarithm, the standard library's.
    fn ln(self) -> Self;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// `a * b + c`, rounded once where the path has the instruction.
    fn fma<I: Isa>(isa: I, a: Self, b: Self, c: Self) -> Self;
    /// `sum += a * b` for each of `sums` and its `b`, which are rows of a register tile.
    fn axpy<I: Isa>(isa: I, a: Self, b: &[Self], sums: &mut [Self]);
    /// The greater; NaN if either is.
    fn max(self, other: Self) -> Self;
}

impl Float for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;

    #[inline(always)]
    fn from_f64(value: f64) -> f32 {
        value as f32
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn exp<I: Isa>(self, isa: I) -> f32 {
        exp_f32(isa, self)
    }

    #[inline(always)]
    fn exp_flushed<I: Isa>(self, isa: I) -> f32 {
        exp_flushed_f32(isa, self)
    }

    #[inline(always)]
    fn tanh<I: Isa>(self, isa: I) -> f32 {
        tanh_f32(isa, self)
    }

    #[inline(always)]
    fn sigmoid<I: Isa>(self, isa: I) -> f32 {
        sigmoid_f32(isa, self)
    }

    #[inline(always)]
    fn ln(self) -> f32 {
        f32::ln(self)
    }

    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }

    #[inline(always)]
    fn fma<I: Isa>(_: I, a: f32, b: f32, c: f32) -> f32 {
        I::fma_f32(a, b, c)
    }

    #[inline(always)]
    fn axpy<I: Isa>(_: I, a: f32, b: &[f32], sums: &mut [f32]) {
        I::axpy_f32(a, b, sums);
    }

    #[inline(always)]
    fn max(self, other: f32) -> f32 {
        if self > other || f32::is_nan(self) { self } else { other }
    }
}

impl Float for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const NEG_INFINITY: f64 = f64::NEG_INFINITY;

    #[inline(always)]
    fn from_f64(value: f64) -> f64 {
        value
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }

    #[inline(always)]
    fn exp<I: Isa>(self, _: I) -> f64 {
        f64::exp(self)
    }

    #[inline(always)]
    fn exp_flushed<I: Isa>(self, _: I) -> f64 {
        f64::exp(self)
    }

    #[inline(always)]
    fn tanh<I: Isa>(self, _: I) -> f64 {
        f64::tanh(self)
    }

    #[inline(always)]
    fn sigmoid<I: Isa>(self, _: I) -> f64 {
        1.0 / (1.0 + f64::exp(-self))
    }

    #[inline(always)]
    fn ln(self) -> f64 {
        f64::ln(self)
    }

    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }

    #[inline(always)]
    fn fma<I: Isa>(_: I, a: f64, b: f64, c: f64) -> f64 {
        I::fma_f64(a, b, c)
    }

    #[inline(always)]
    fn axpy<I: Isa>(_: I, a: f64, b: &[f64], sums: &mut [f64]) {
        for (sum, b) in sums.iter_mut().zip(b) {
            *sum = I::fma_f64(a, *b, *sum);
        }
    }

    #[inline(always)]
    fn max(self, other: f64) -> f64 {
        if self > other || f64::is_nan(self) { self } else { other }
    }
}

/// Splits x, |x| < 2^21, into (n, e^r - 1) with x = n ln 2 + r and |r| <= ln 2 / 2. e^r - 1 = r + r^2 p(r), p of degree 4
/// interpolating (e^r - 1 - r) / r^2 at Chebyshev nodes (relative error below 1e-8). NaN stays in the second.
#[inline(always)]
fn reduce<I: Isa>(x: f32) -> (i32, f32) {
    /// 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first short enough that its product with n is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let shifted = I::fma_f32(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = I::fma_f32(n, -LN_2[1], I::fma_f32(n, -LN_2[0], x));
    let mut p = 1.392_632_6e-3;
    for coefficient in [8.363_293e-3, 4.166_655_4e-2, 1.666_657_6e-1, 0.5] {
        p = I::fma_f32(p, r, coefficient);
    }
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    (n, I::fma_f32(r * r, p, r))
}

/// 2^n for n in -126..=127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32).wrapping_shl(23))
}

/// e^x. Gradual underflow below -87.3, 0 from -104 on, infinity above 88.72, NaN of NaN.
#[inline(always)]
pub(crate) fn exp_f32<I: Isa>(_: I, x: f32) -> f32 {
    // Comparisons that are false for NaN, so that it passes.
    let x = if x < -105.0 { -105.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let (n, fraction) = reduce::<I>(x);
    // Two factors, since 2^n alone may be subnormal or too large.
    let half = n >> 1;
    (1.0 + fraction) * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// e^x for x up to 88, 0 below -87.33 (the logarithm of the least normal number), NaN of NaN. One power of two and one comparison
/// take the place of two each.
#[inline(always)]
pub(crate) fn exp_flushed_f32<I: Isa>(_: I, x: f32) -> f32 {
    let (n, fraction) = reduce::<I>(x);
    let power = power_of_two(n);
    let value = I::fma_f32(power, fraction, power);
    // A comparison that is false for NaN, so that it passes.
    if x < -87.33 { 0.0 } else { value }
}

/// tanh |x| = -u / (u + 2) with u = e^(-2|x|) - 1, formed without cancellation; the sign is that of x.
#[inline(always)]
pub(crate) fn tanh_f32<I: Isa>(_: I, x: f32) -> f32 {
    let magnitude = x.abs();
    // From 9.02 on the result rounds to 1.
    let clamped = if magnitude > 10.0 { 10.0 } else { magnitude };
    let (n, fraction) = reduce::<I>(-2.0 * clamped);
    let scale = power_of_two(n);
    let u = I::fma_f32(scale, fraction, scale - 1.0);
    (u / (u + 2.0)).copysign(x)
}

/// e^x / (1 + e^x), 0 below -87.33.
#[inline(always)]
pub(crate) fn sigmoid_f32<I: Isa>(isa: I, x: f32) -> f32 {
    // A comparison that is false for NaN, so that it passes. From 17 on the result rounds to 1.
    let power = exp_flushed_f32(isa, if x > 88.0 { 88.0 } else { x });
    power / (1.0 + power)
}

/// Partial values of a reduction: four vectors of the widest path.
pub(crate) const ACCUMULATORS: usize = 32;

/// Folds partial values in halves: i with i + 16, then with i + 8, and so on.
#[inline(always)]
pub(crate) fn fold<F: Float>(partial: [F; ACCUMULATORS], combine: impl Fn(F, F) -> F) -> F {
    // Out of sight, so that the loop before this one is compiled in vectors of neighbours, not in the pairs of the halves.
    let mut partial = std::hint::black_box(partial);
    let mut width = ACCUMULATORS / 2;
    while width > 0 {
        for i in 0..width {
            partial[i] = combine(partial[i], partial[i + width]);
        }
        width /= 2;
    }
    partial[0]
}

/// The sum of `term(partial, x)` steps over a slice.
#[inline(always)]
fn reduce_slice<F: Float>(x: &[F], start: F, step: impl Fn(F, F) -> F, combine: impl Fn(F, F) -> F) -> F {
    let mut partial = [start; ACCUMULATORS];
    let (chunks, rest) = x.as_chunks::<ACCUMULATORS>();
    for chunk in chunks {
        for i in 0..ACCUMULATORS {
            partial[i] = step(partial[i], chunk[i]);
        }
    }
    for (value, x) in partial.iter_mut().zip(rest) {
        *value = step(*value, *x);
    }
    fold(partial, combine)
}

/// The sum of a slice; 0 if empty.
#[inline(always)]
pub(crate) fn sum<F: Float, I: Isa>(_: I, x: &[F]) -> F {
    reduce_slice(x, F::ZERO, |a, b| a + b, |a, b| a + b)
}

/// The sum of squares of a slice; 0 if empty.
#[inline(always)]
pub(crate) fn sum_squares<F: Float, I: Isa>(isa: I, x: &[F]) -> F {
    reduce_slice(x, F::ZERO, |a, b| F::fma(isa, b, b, a), |a, b| a + b)
}

/// The sum of squares of what the values of a slice differ from `center` by; 0 if empty.
#[inline(always)]
pub(crate) fn sum_squares_around<F: Float, I: Isa>(isa: I, x: &[F], center: F) -> F {
    let square = |sum, x: F| {
        let distance = x - center;
        F::fma(isa, distance, distance, sum)
    };
    reduce_slice(x, F::ZERO, square, |a, b| a + b)
}

/// The greatest value of a slice; NaN if any is, minus infinity if empty.
#[inline(always)]
pub(crate) fn max<F: Float, I: Isa>(_: I, x: &[F]) -> F {
    reduce_slice(x, F::NEG_INFINITY, F::max, F::max)
}

/// The sum of products of two slices, up to the length of the shorter; 0 if empty.
#[inline(always)]
pub(crate) fn dot<F: Float, I: Isa>(isa: I, a: &[F], b: &[F]) -> F {
    let length = a.len().min(b.len());
    let mut partial = [F::ZERO; ACCUMULATORS];
    let (a_chunks, a_rest) = a[..length].as_chunks::<ACCUMULATORS>();
    let (b_chunks, b_rest) = b[..length].as_chunks::<ACCUMULATORS>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..ACCUMULATORS {
            partial[i] = F::fma(isa, a[i], b[i], partial[i]);
        }
    }
    for ((value, a), b) in partial.iter_mut().zip(a_rest).zip(b_rest) {
        *value = F::fma(isa, *a, *b, *value);
    }
    fold(partial, |a, b| a + b)
}

#[cfg(test)]
mod tests;
