//! Upload, download, fill, strided copy and cast: each element read once and written once.
//!
//! Rows of equal dtype with stride 1 move as bytes; other pairs convert element by element. A matrix copied into its transpose goes in square
//! blocks, so that both sides stay in cache.

use half::{bf16, f16};

use super::access::{Access, View, ViewMut};
use super::isa::{Isa, Kernel, dispatch};
use super::math;
use super::parallel::{Pool, blocks};
use super::stream;
use crate::{DType, Element, Result, Tensor};

/// Side of the blocks of a transposing copy: 32 f32 values are two cache lines.
const BLOCK: usize = 32;

/// Runs a body with the type `$E` set to the Rust type of any dtype.
macro_rules! with_element {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            DType::F64 => {
                type $E = f64;
                $body
            }
            DType::F32 => {
                type $E = f32;
                $body
            }
            DType::F16 => {
                type $E = f16;
                $body
            }
            DType::BF16 => {
                type $E = bf16;
                $body
            }
            DType::I32 => {
                type $E = i32;
                $body
            }
            DType::I64 => {
                type $E = i64;
                $body
            }
        }
    };
}

/// Conversion between element types: exact to f64 for floats, to i64 for integers.
pub(super) trait Convert: Element {
    fn to_f64(self) -> f64;
    fn from_f64(x: f64) -> Self;
    fn from_i64(x: i64) -> Self;
    fn to_i64(self) -> Option<i64>;
}

/// x cut to an f32 whose last bit is set where something was cut off, so that rounding it once more, to half precision, rounds x
/// correctly (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008; `from_f64` of the types ignores the lower bits).
#[inline(always)]
fn to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    if nearest as f64 == x || x.is_nan() {
        return nearest;
    }
    let away = (nearest as f64).abs() > x.abs();
    f32::from_bits((nearest.to_bits() - u32::from(away)) | 1)
}

macro_rules! convert_float {
    ($($t:ty: $to:expr, $from:expr);*) => { $(impl Convert for $t {
        #[inline(always)]
        fn to_f64(self) -> f64 { $to(self) }
        #[inline(always)]
        fn from_f64(x: f64) -> Self { $from(x) }
        #[inline(always)]
        fn from_i64(x: i64) -> Self { $from(x as f64) }
        #[inline(always)]
        fn to_i64(self) -> Option<i64> { None }
    })* };
}
convert_float!(f64: |x| x, |x| x; f32: |x| x as f64, |x| x as f32; f16: f16::to_f64, |x| f16::from_f32(to_odd(x)); bf16: bf16::to_f64, |x| bf16::from_f32(to_odd(x)));

macro_rules! convert_integer {
    ($($t:ty),*) => { $(impl Convert for $t {
        #[inline(always)]
        fn to_f64(self) -> f64 { self as f64 }
        #[inline(always)]
        fn from_f64(x: f64) -> Self { x as $t }
        #[inline(always)]
        fn from_i64(x: i64) -> Self { x.clamp(<$t>::MIN as i64, <$t>::MAX as i64) as $t }
        #[inline(always)]
        fn to_i64(self) -> Option<i64> { Some(self as i64) }
    })* };
}
convert_integer!(i32, i64);

#[inline(always)]
fn convert<A: Convert, B: Convert>(x: A) -> B {
    match x.to_i64() {
        Some(i) => B::from_i64(i),
        None => B::from_f64(x.to_f64()),
    }
}

/// Copies host bytes into a contiguous tensor.
pub(super) fn upload(out: &Tensor, bytes: &[u8]) -> Result<()> {
    with_element!(out.dtype(), E => {
        let access = Access::new("upload", &[], &[out])?;
        let view = access.view_mut::<E>(out)?;
        // SAFETY: the only reference to the locked buffer.
        let slice = unsafe { view.slice(0..out.len()) };
        bytemuck::cast_slice_mut::<E, u8>(slice).copy_from_slice(bytes);
        Ok(())
    })
}

/// Copies a contiguous tensor into host bytes.
pub(super) fn download(x: &Tensor, bytes: &mut [u8]) -> Result<()> {
    with_element!(x.dtype(), E => {
        let access = Access::new("download", &[x], &[])?;
        bytes.copy_from_slice(bytemuck::cast_slice::<E, u8>(access.view::<E>(x)?.slice()));
        Ok(())
    })
}

/// Sets every element.
pub(super) fn fill(pool: &Pool, out: &Tensor, value: f64) -> Result<()> {
    with_element!(out.dtype(), E => {
        let access = Access::new("fill", &[], &[out])?;
        let view = access.view_mut::<E>(out)?;
        let value = <E as Convert>::from_f64(value);
        if out.is_contiguous() {
            let (count, per_block) = blocks(out.len(), 1);
            pool.run(count, |b| {
                // SAFETY: blocks are disjoint.
                let part = unsafe { view.slice(b * per_block..((b + 1) * per_block).min(out.len())) };
                stream::fill(part, value, out.len() * size_of::<E>());
            });
        } else {
            for i in 0..out.len() {
                // SAFETY: inside the view's span, locked for writing.
                unsafe { *view.at(out.layout().offset_of(i)) = value }
            }
        }
        Ok(())
    })
}

/// `out = x`, converted.
pub(super) fn copy(pool: &Pool, out: &Tensor, x: &Tensor) -> Result<()> {
    with_element!(x.dtype(), A => with_element!(out.dtype(), B => {
        let access = Access::new("copy", &[x], &[out])?;
        copy_views::<A, B>(pool, access.view_mut::<B>(out)?, access.view::<A>(x)?);
        Ok(())
    }))
}

/// Copies between views of equal shape.
pub(super) fn copy_views<A: Convert, B: Convert>(pool: &Pool, out: ViewMut<'_, B>, x: View<'_, A>) {
    let n = out.layout().len();
    if n == 0 {
        return;
    }
    // Dimensions in the order in which `out` lies in memory.
    let order = out.layout().by_stride();
    let (out, x) = match (out.layout().permute(&order), x.layout().permute(&order)) {
        (Ok(to), Ok(from)) => (out.with_layout(to), x.with_layout(from)),
        _ => (out, x),
    };
    if out.layout().is_contiguous() && x.layout().is_contiguous() {
        let (count, per_block) = blocks(n, 1);
        let input = x.slice();
        pool.run(count, |b| {
            let range = b * per_block..((b + 1) * per_block).min(n);
            // SAFETY: blocks are disjoint.
            row(&input[range.clone()], unsafe { out.slice(range) });
        });
        return;
    }
    let (shape, rank) = (out.layout().shape().to_vec(), out.layout().rank());
    if rank == 0 {
        // SAFETY: one element inside both spans.
        unsafe { *out.at(out.layout().offset()) = convert(*x.at(x.layout().offset())) };
        return;
    }
    let width = shape[rank - 1];
    let (so, sx) = (out.layout().strides()[rank - 1], x.layout().strides()[rank - 1]);
    if rank >= 2 && sx != 1 && so == 1 && x.layout().strides()[rank - 2] == 1 {
        return transpose(pool, out, x);
    }
    let rows = n / width;
    let (count, per_block) = blocks(rows, width);
    pool.run(count, |b| {
        for r in b * per_block..((b + 1) * per_block).min(rows) {
            let (to, from) = (out.layout().offset_of(r * width), x.layout().offset_of(r * width));
            if so == 1 && sx == 1 {
                // SAFETY: rows inside both spans; those of different tasks are disjoint.
                let (x, out) = unsafe {
                    (std::slice::from_raw_parts(x.at(from), width), std::slice::from_raw_parts_mut(out.at(to), width))
                };
                row(x, out);
                continue;
            }
            for i in 0..width {
                // SAFETY: inside both spans; rows of different tasks are disjoint.
                unsafe { *out.at(to + i * so) = convert(*x.at(from + i * sx)) };
            }
        }
    });
}

/// Converts neighbours.
pub(super) fn row<A: Convert, B: Convert>(x: &[A], out: &mut [B]) {
    match (A::DTYPE, B::DTYPE) {
        (a, b) if a == b => bytemuck::cast_slice_mut::<B, u8>(out).copy_from_slice(bytemuck::cast_slice::<A, u8>(x)),
        (DType::BF16, DType::F32) => {
            dispatch(Widen { out: bytemuck::cast_slice_mut(out), x: bytemuck::cast_slice(x) });
        }
        (DType::F32, DType::BF16) => {
            dispatch(Round { out: bytemuck::cast_slice_mut(out), x: bytemuck::cast_slice(x) });
        }
        _ => out.iter_mut().zip(x).for_each(|(o, &x)| *o = convert(x)),
    }
}

/// bf16 bits to f32: exact.
struct Widen<'a> {
    out: &'a mut [f32],
    x: &'a [u16],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        self.out.iter_mut().zip(self.x).for_each(|(o, &x)| *o = math::widen(x));
    }
}

/// f32 to bf16 bits, to nearest even.
struct Round<'a> {
    out: &'a mut [u16],
    x: &'a [f32],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        self.out.iter_mut().zip(self.x).for_each(|(o, &x)| *o = math::round(x));
    }
}

/// Rows of `out` are columns of `x`: square blocks.
fn transpose<A: Convert, B: Convert>(pool: &Pool, out: ViewMut<'_, B>, x: View<'_, A>) {
    let rank = out.layout().rank();
    let (m, n) = (out.layout().shape()[rank - 2], out.layout().shape()[rank - 1]);
    let (os, xs) = (out.layout().strides()[rank - 2], x.layout().strides()[rank - 1]);
    let batches = out.layout().len() / (m * n);
    let down = m.div_ceil(BLOCK);
    pool.run(batches * down, |task| {
        let (batch, row) = (task / down, task % down * BLOCK);
        let (to, from) = (out.layout().offset_of(batch * m * n), x.layout().offset_of(batch * m * n));
        for column in (0..n).step_by(BLOCK) {
            for i in row..(row + BLOCK).min(m) {
                for j in column..(column + BLOCK).min(n) {
                    // SAFETY: inside both spans; tasks write rows of their own.
                    unsafe { *out.at(to + i * os + j) = convert(*x.at(from + i + j * xs)) };
                }
            }
        }
    });
}
