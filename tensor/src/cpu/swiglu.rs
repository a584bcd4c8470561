//! SwiGLU over rows [gate | up], forward and backward (the sigmoid is computed again rather than kept); about 20 FLOP an output element, bound by memory.

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

vectorized! {
    fn swiglu_row<'a, F, S>(isa: I, out: &'a mut [S], x: &'a [S]) -> () {
        let (gate, up) = x.split_at(out.len());
        map(isa, false, [out], [gate, up], |[gate, up]: [F; 2]| [gate * gate.sigmoid(isa) * up])
    }
}

/// Gradients of gate and up.
#[inline(always)]
fn gradients<F: Float, I: Isa>(isa: I, d: F, gate: F, up: F) -> [F; 2] {
    let s = gate.sigmoid(isa);
    [d * up * s * F::fma(isa, gate, F::ONE - s, F::ONE), d * gate * s]
}

vectorized! {
    fn swiglu_backward_row<'a, F, S>(isa: I, accumulate: bool, d_x: &'a mut [S], d_out: &'a [S], x: &'a [S]) -> () {
        let ((gate, up), (d_gate, d_up)) = (x.split_at(d_out.len()), d_x.split_at_mut(d_out.len()));
        map(isa, accumulate, [d_gate, d_up], [d_out, gate, up], |[d, gate, up]: [F; 3]| gradients(isa, d, gate, up))
    }
}

/// `out = silu(gate) * up`.
pub(super) fn swiglu(pool: &Pool, out: &Tensor, x: &Tensor) -> Result<()> {
    with_float!("swiglu", x.dtype(), F => with_stored!(x.dtype(), F, S => {
        let access = Access::new("swiglu", &[x], &[out])?;
        let (y, x) = (access.output::<S>(out)?, access.view::<S>(x)?);
        let rows = x.rows();
        let (count, per_block) = blocks(rows, x.width() * 4);
        pool.run(count, |b| {
            let mut writer = Writer::new(out.len(), false);
            for r in b * per_block..((b + 1) * per_block).min(rows) {
                // SAFETY: rows of different tasks are disjoint.
                writer.write(unsafe { y.row(r) }, |out| swiglu_row::<F, S>(out, x.row(r)));
            }
        });
        Ok(())
    }))
}

/// Gradients of gate and up, joined.
pub(super) fn swiglu_backward(pool: &Pool, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()> {
    let Destination { tensor, accumulate } = d_x;
    with_float!("swiglu_backward", x.dtype(), F => with_stored!(x.dtype(), F, S => {
        let access = Access::new("swiglu_backward", &[d_out, x], &[tensor])?;
        let (d_x, d_out, x) = (access.destination::<S>(d_x)?, access.view::<S>(d_out)?, access.view::<S>(x)?);
        let rows = x.rows();
        let (count, per_block) = blocks(rows, x.width() * 6);
        pool.run(count, |b| {
            let mut writer = Writer::new(tensor.len(), accumulate);
            for r in b * per_block..((b + 1) * per_block).min(rows) {
                // SAFETY: rows of different tasks are disjoint.
                let to = unsafe { d_x.row(r) };
                writer.write(to, |d_x| swiglu_backward_row::<F, S>(accumulate, d_x, d_out.row(r), x.row(r)));
            }
        });
        Ok(())
    }))
}
