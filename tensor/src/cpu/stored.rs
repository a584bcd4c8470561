//! Types in which values are stored that kernels compute with in f32 or f64.

use super::isa::Isa;
use super::math::{Float, widen};
use half::bf16;

/// A stored type, read as F.
pub(super) trait Stored<F>: bytemuck::Pod + Send + Sync {
    /// The value, exact.
    fn wide(self) -> F;
    /// The values themselves, if they are stored in F.
    fn as_wide(values: &[Self]) -> Option<&[F]>;
    /// Values that are stored one after the other, exact.
    fn get<I: Isa, const N: usize>(isa: I, from: &[Self; N]) -> [F; N];
    /// Stores values, rounded to nearest even.
    fn put<I: Isa, const N: usize>(isa: I, values: &[F; N], to: &mut [Self; N]);
}

impl<F: Float> Stored<F> for F {
    #[inline(always)]
    fn wide(self) -> F {
        self
    }

    #[inline(always)]
    fn as_wide(values: &[F]) -> Option<&[F]> {
        Some(values)
    }

    #[inline(always)]
    fn get<I: Isa, const N: usize>(_: I, from: &[F; N]) -> [F; N] {
        *from
    }

    #[inline(always)]
    fn put<I: Isa, const N: usize>(_: I, values: &[F; N], to: &mut [F; N]) {
        *to = *values;
    }
}

impl<F: Float> Stored<F> for bf16 {
    #[inline(always)]
    fn wide(self) -> F {
        F::from_f64(f64::from(widen(self.to_bits())))
    }

    #[inline(always)]
    fn as_wide(_: &[bf16]) -> Option<&[F]> {
        None
    }

    #[inline(always)]
    fn get<I: Isa, const N: usize>(_: I, from: &[bf16; N]) -> [F; N] {
        let mut wide = [0.0; N];
        I::widen_bf16(bytemuck::cast_slice(from), &mut wide);
        let mut values = [F::ZERO; N];
        for (value, wide) in values.iter_mut().zip(wide) {
            *value = F::from_f64(f64::from(wide));
        }
        values
    }

    #[inline(always)]
    fn put<I: Isa, const N: usize>(_: I, values: &[F; N], to: &mut [bf16; N]) {
        let mut narrow = [0.0; N];
        for (to, value) in narrow.iter_mut().zip(values) {
            *to = value.to_f64() as f32;
        }
        I::round_bf16(&narrow, bytemuck::cast_slice_mut(to));
    }
}

/// Runs a body with the type `$S` set to that in which a tensor of `$dtype` is stored: bf16, or else `$F`, which is computed in.
macro_rules! with_stored {
    ($dtype:expr, $F:ty, $S:ident => $body:expr) => {
        match $dtype {
            crate::DType::BF16 => {
                type $S = half::bf16;
                $body
            }
            _ => {
                type $S = $F;
                $body
            }
        }
    };
}
pub(super) use with_stored;
