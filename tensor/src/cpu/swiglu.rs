//! SwiGLU over rows [gate | up], forward and backward (the sigmoid is computed again rather than kept); about 20 FLOP an output element, bound by memory.

use super::access::Access;
use super::isa::Isa;
use super::math::Float;
use super::parallel::{Pool, blocks};
use super::rows::{Rows, RowsMut};
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
        let access = Access::new("swiglu", &[x], &[out])?;
        let (out, x) = (RowsMut::<F>::of(&access, Destination::write(out))?, Rows::of(&access, x)?);
        let rows = x.count();
        let (count, per_block) = blocks(rows, x.width() * 4);
        pool.run(count, |b| {
            let (mut out, mut x) = (out.writer(), x.reader());
            for r in b * per_block..((b + 1) * per_block).min(rows) {
                // SAFETY: rows of different tasks are disjoint.
                unsafe { out.write(r, |out| swiglu_row::<F>(out, x.row(r))) };
            }
        });
        Ok(())
    })
}

/// Gradients of gate and up, joined.
pub(super) fn swiglu_backward(pool: &Pool, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()> {
    with_float!("swiglu_backward", x.dtype(), F => {
        let access = Access::new("swiglu_backward", &[d_out, x], &[d_x.tensor])?;
        let accumulate = d_x.accumulate;
        let (d_x, d_out, x) = (RowsMut::<F>::of(&access, d_x)?, Rows::of(&access, d_out)?, Rows::of(&access, x)?);
        let rows = x.count();
        let (count, per_block) = blocks(rows, x.width() * 6);
        pool.run(count, |b| {
            let (mut d_x, mut d_out, mut x) = (d_x.writer(), d_out.reader(), x.reader());
            for r in b * per_block..((b + 1) * per_block).min(rows) {
                // SAFETY: rows of different tasks are disjoint.
                unsafe { d_x.write(r, |d_x| swiglu_backward_row::<F>(accumulate, d_x, d_out.row(r), x.row(r))) };
            }
        });
        Ok(())
    })
}
