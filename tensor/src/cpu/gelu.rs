//! GELU (tanh form) over rows, forward and backward; about 20 FLOP an element, bound by memory.

use super::access::Access;
use super::isa::Isa;
use super::math::Float;
use super::parallel::{Pool, blocks};
use super::rows::{Rows, RowsMut};
use super::vectorized::vectorized;
use super::with_float;
use crate::backend::Destination;
use crate::{Result, Tensor};

/// sqrt(2/pi)
const ROOT: f64 = 0.797_884_560_802_865_4;
const CUBE: f64 = 0.044_715;

/// What GELU multiplies x by: `(1 + tanh z) / 2`, which is the sigmoid of 2z, for `z = sqrt(2/pi) (x + 0.044715 x^3)`.
#[inline(always)]
fn gate<F: Float, I: Isa>(isa: I, x: F) -> F {
    (F::from_f64(2.0 * ROOT) * x * F::fma(isa, F::from_f64(CUBE) * x, x, F::ONE)).sigmoid(isa)
}

/// Derivative of GELU.
#[inline(always)]
fn derivative<F: Float, I: Isa>(isa: I, x: F) -> F {
    let gate = gate(isa, x);
    let slope = F::from_f64(2.0 * ROOT) * F::fma(isa, F::from_f64(3.0 * CUBE) * x, x, F::ONE);
    F::fma(isa, x * slope, gate * (F::ONE - gate), gate)
}

vectorized! {
    fn gelu_row<'a, F>(isa: I, out: &'a mut [F], x: &'a [F]) -> () {
        out.iter_mut().zip(x).for_each(|(o, &x)| *o = x * gate(isa, x))
    }
}

vectorized! {
    fn gelu_backward_row<'a, F>(isa: I, accumulate: bool, d_x: &'a mut [F], d_out: &'a [F], x: &'a [F]) -> () {
        match accumulate {
            true => d_x.iter_mut().zip(d_out).zip(x).for_each(|((d, &g), &x)| *d += g * derivative(isa, x)),
            false => d_x.iter_mut().zip(d_out).zip(x).for_each(|((d, &g), &x)| *d = g * derivative(isa, x)),
        }
    }
}

/// `out = gelu(x)`.
pub(super) fn gelu(pool: &Pool, out: &Tensor, x: &Tensor) -> Result<()> {
    with_float!("gelu", x.dtype(), F => {
        let access = Access::new("gelu", &[x], &[out])?;
        let (out, x) = (RowsMut::<F>::of(&access, Destination::write(out))?, Rows::of(&access, x)?);
        let rows = x.count();
        let (count, per_block) = blocks(rows, x.width() * 8);
        pool.run(count, |b| {
            let (mut out, mut x) = (out.writer(), x.reader());
            for r in b * per_block..((b + 1) * per_block).min(rows) {
                // SAFETY: rows of different tasks are disjoint.
                unsafe { out.write(r, |out| gelu_row::<F>(out, x.row(r))) };
            }
        });
        Ok(())
    })
}

/// `d_x (+)= d_out * gelu'(x)`.
pub(super) fn gelu_backward(pool: &Pool, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()> {
    with_float!("gelu_backward", x.dtype(), F => {
        let access = Access::new("gelu_backward", &[d_out, x], &[d_x.tensor])?;
        let accumulate = d_x.accumulate;
        let (d_x, d_out, x) = (RowsMut::<F>::of(&access, d_x)?, Rows::of(&access, d_out)?, Rows::of(&access, x)?);
        let rows = x.count();
        let (count, per_block) = blocks(rows, x.width() * 8);
        pool.run(count, |b| {
            let (mut d_x, mut d_out, mut x) = (d_x.writer(), d_out.reader(), x.reader());
            for r in b * per_block..((b + 1) * per_block).min(rows) {
                // SAFETY: rows of different tasks are disjoint.
                unsafe { d_x.write(r, |d_x| gelu_backward_row::<F>(accumulate, d_x, d_out.row(r), x.row(r))) };
            }
        });
        Ok(())
    })
}
