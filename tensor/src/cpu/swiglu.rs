//! SwiGLU over rows [gate | up], forward and backward (the sigmoid is computed again rather than kept); about 20 FLOP an output element, bound by memory.

use super::access::Access;
use super::isa::Isa;
use super::math::Float;
use super::parallel::{Pool, blocks};
use super::stream::Writer;
use super::vectorized::vectorized;
use super::with_float;
use crate::backend::Destination;
use crate::{Result, Tensor};

vectorized! {
    fn swiglu_row<'a, F>(isa: I, out: &'a mut [F], x: &'a [F]) -> () {
        let (gate, up) = x.split_at(out.len());
        out.iter_mut().zip(gate).zip(up).for_each(|((o, &g), &u)| *o = g * g.sigmoid(isa) * u)
    }
}

/// Gradients of gate and up.
#[inline(always)]
fn gradients<F: Float, I: Isa>(isa: I, d: F, gate: F, up: F) -> (F, F) {
    let s = gate.sigmoid(isa);
    (d * up * s * F::fma(isa, gate, F::ONE - s, F::ONE), d * gate * s)
}

vectorized! {
    fn swiglu_backward_row<'a, F>(isa: I, accumulate: bool, d_x: &'a mut [F], d_out: &'a [F], x: &'a [F]) -> () {
        let (gate, up) = x.split_at(d_out.len());
        let (d_gate, d_up) = d_x.split_at_mut(d_out.len());
        let places = d_gate.iter_mut().zip(d_up).zip(d_out).zip(gate).zip(up);
        match accumulate {
            true => places.for_each(|((((dg, du), &d), &g), &u)| {
                let (a, b) = gradients(isa, d, g, u);
                *dg += a;
                *du += b;
            }),
            false => places.for_each(|((((dg, du), &d), &g), &u)| (*dg, *du) = gradients(isa, d, g, u)),
        }
    }
}

/// `out = silu(gate) * up`.
pub(super) fn swiglu(pool: &Pool, out: &Tensor, x: &Tensor) -> Result<()> {
    with_float!("swiglu", x.dtype(), F => {
        let access = Access::converting(pool, "swiglu", &[x], &[out])?;
        let (o, x) = (access.output::<F>(out)?, access.view::<F>(x)?);
        let (count, per_block) = blocks(x.rows(), out.dim(1) * 8);
        pool.run(count, |b| {
            let mut writer = Writer::new(out.len(), false);
            for r in b * per_block..((b + 1) * per_block).min(x.rows()) {
                // SAFETY: rows of different tasks are disjoint.
                writer.write(unsafe { o.row(r) }, |out| swiglu_row::<F>(out, x.row(r)));
            }
        });
        Ok(())
    })
}

/// Gradients of gate and up, joined.
pub(super) fn swiglu_backward(pool: &Pool, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()> {
    with_float!("swiglu_backward", x.dtype(), F => {
        let access = Access::converting(pool, "swiglu_backward", &[d_out, x], &[d_x.tensor])?;
        let (d, g, x) = (access.destination::<F>(d_x)?, access.view::<F>(d_out)?, access.view::<F>(x)?);
        let (count, per_block) = blocks(x.rows(), d_out.dim(1) * 12);
        pool.run(count, |b| {
            let mut writer = Writer::new(d_x.tensor.len(), d_x.accumulate);
            for r in b * per_block..((b + 1) * per_block).min(x.rows()) {
                // SAFETY: rows of different tasks are disjoint.
                writer.write(unsafe { d.row(r) }, |out| swiglu_backward_row::<F>(d_x.accumulate, out, g.row(r), x.row(r)));
            }
        });
        Ok(())
    })
}
