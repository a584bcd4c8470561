//! GELU (tanh form) over rows, forward and backward; about 20 FLOP an element, bound by memory.

use super::access::Access;
use super::isa::Isa;
use super::math::Float;
use super::parallel::{Pool, blocks};
use super::stored::with_stored;
use super::stream::Writer;
use super::strips::map;
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
    fn gelu_row<'a, F, S>(isa: I, out: &'a mut [S], x: &'a [S]) -> () {
        map(isa, false, [out], [x], |[x]: [F; 1]| [x * gate(isa, x)])
    }
}

vectorized! {
    fn gelu_backward_row<'a, F, S>(isa: I, accumulate: bool, d_x: &'a mut [S], d_out: &'a [S], x: &'a [S]) -> () {
        map(isa, accumulate, [d_x], [d_out, x], |[d_out, x]: [F; 2]| [d_out * derivative(isa, x)])
    }
}

/// `out = gelu(x)`.
pub(super) fn gelu(pool: &Pool, out: &Tensor, x: &Tensor) -> Result<()> {
    with_float!("gelu", x.dtype(), F => with_stored!(x.dtype(), F, S => {
        let access = Access::new("gelu", &[x], &[out])?;
        let (y, x) = (access.output::<S>(out)?, access.view::<S>(x)?);
        let rows = x.rows();
        let (count, per_block) = blocks(rows, x.width() * 8);
        pool.run(count, |b| {
            let mut writer = Writer::new(out.len(), false);
            for r in b * per_block..((b + 1) * per_block).min(rows) {
                // SAFETY: rows of different tasks are disjoint.
                writer.write(unsafe { y.row(r) }, |out| gelu_row::<F, S>(out, x.row(r)));
            }
        });
        Ok(())
    }))
}

/// `d_x (+)= d_out * gelu'(x)`.
pub(super) fn gelu_backward(pool: &Pool, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()> {
    let Destination { tensor, accumulate } = d_x;
    with_float!("gelu_backward", x.dtype(), F => with_stored!(x.dtype(), F, S => {
        let access = Access::new("gelu_backward", &[d_out, x], &[tensor])?;
        let (d_x, d_out, x) = (access.destination::<S>(d_x)?, access.view::<S>(d_out)?, access.view::<S>(x)?);
        let rows = x.rows();
        let (count, per_block) = blocks(rows, x.width() * 8);
        pool.run(count, |b| {
            let mut writer = Writer::new(tensor.len(), accumulate);
            for r in b * per_block..((b + 1) * per_block).min(rows) {
                // SAFETY: rows of different tasks are disjoint.
                let to = unsafe { d_x.row(r) };
                writer.write(to, |d_x| gelu_backward_row::<F, S>(accumulate, d_x, d_out.row(r), x.row(r)));
            }
        });
        Ok(())
    }))
}
