//! GELU (tanh form) over rows, forward and backward; about 20 FLOP an element, bound by memory.

use super::access::Access;
use super::isa::Isa;
use super::math::Float;
use super::parallel::{Pool, blocks};
use super::stream::Writer;
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
        let access = Access::converting(pool, "gelu", &[x], &[out])?;
        let (o, x) = (access.output::<F>(out)?, access.view::<F>(x)?);
        let (count, per_block) = blocks(x.rows(), out.dim(1) * 8);
        pool.run(count, |b| {
            let mut writer = Writer::new(out.len(), false);
            for r in b * per_block..((b + 1) * per_block).min(x.rows()) {
                // SAFETY: rows of different tasks are disjoint.
                writer.write(unsafe { o.row(r) }, |out| gelu_row::<F>(out, x.row(r)));
            }
        });
        Ok(())
    })
}

/// `d_x (+)= d_out * gelu'(x)`.
pub(super) fn gelu_backward(pool: &Pool, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()> {
    with_float!("gelu_backward", x.dtype(), F => {
        let access = Access::converting(pool, "gelu_backward", &[d_out, x], &[d_x.tensor])?;
        let (d, g, x) = (access.destination::<F>(d_x)?, access.view::<F>(d_out)?, access.view::<F>(x)?);
        let (count, per_block) = blocks(x.rows(), d_x.tensor.dim(1) * 8);
        pool.run(count, |b| {
            let mut writer = Writer::new(d_x.tensor.len(), d_x.accumulate);
            for r in b * per_block..((b + 1) * per_block).min(x.rows()) {
                // SAFETY: rows of different tasks are disjoint.
                writer.write(unsafe { d.row(r) }, |out| gelu_backward_row::<F>(d_x.accumulate, out, g.row(r), x.row(r)));
            }
        });
        Ok(())
    })
}
