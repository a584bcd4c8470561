//! Softmax over rows: `y = e^(x - max) / sum`; `d_x (+)= y (d_y - sum d_y y)`. Three sweeps over a row that stays in cache: reads and writes each element
//! once from memory, about 20 FLOP an element.

use super::access::Access;
use super::math::{dot, max};
use super::parallel::{Pool, blocks};
use super::stream::Writer;
use super::vectorized::vectorized;
use super::with_float;
use crate::backend::Destination;
use crate::{Result, Tensor};

vectorized! {
    fn softmax_row<'a, F>(isa: I, out: &'a mut [F], x: &'a [F]) -> () {
        let max = max(isa, x);
        out.iter_mut().zip(x).for_each(|(o, &x)| *o = (x - max).exp_flushed(isa));
        let scale = F::ONE / super::math::sum(isa, out);
        out.iter_mut().for_each(|o| *o *= scale);
    }
}

vectorized! {
    fn softmax_backward_row<'a, F>(isa: I, accumulate: bool, d_x: &'a mut [F], d_y: &'a [F], y: &'a [F]) -> () {
        let mean = dot(isa, d_y, y);
        match accumulate {
            true => d_x.iter_mut().zip(d_y).zip(y).for_each(|((d, &g), &y)| *d += y * (g - mean)),
            false => d_x.iter_mut().zip(d_y).zip(y).for_each(|((d, &g), &y)| *d = y * (g - mean)),
        }
    }
}

/// Softmax of every row.
pub(super) fn softmax(pool: &Pool, out: &Tensor, x: &Tensor) -> Result<()> {
    with_float!("softmax", x.dtype(), F => {
        let access = Access::converting(pool, "softmax", &[x], &[out])?;
        let (o, x) = (access.output::<F>(out)?, access.view::<F>(x)?);
        let (count, per_block) = blocks(x.rows(), out.dim(1) * 16);
        pool.run(count, |b| {
            let mut writer = Writer::new(out.len(), false);
            for r in b * per_block..((b + 1) * per_block).min(x.rows()) {
                // SAFETY: rows of different tasks are disjoint.
                writer.write(unsafe { o.row(r) }, |out| softmax_row::<F>(out, x.row(r)));
            }
        });
        Ok(())
    })
}

/// Gradient of every row.
pub(super) fn softmax_backward(pool: &Pool, d_x: Destination, d_y: &Tensor, y: &Tensor) -> Result<()> {
    with_float!("softmax_backward", y.dtype(), F => {
        let access = Access::converting(pool, "softmax_backward", &[d_y, y], &[d_x.tensor])?;
        let (d, g, y) = (access.destination::<F>(d_x)?, access.view::<F>(d_y)?, access.view::<F>(y)?);
        let (count, per_block) = blocks(y.rows(), d_x.tensor.dim(1) * 4);
        pool.run(count, |b| {
            let mut writer = Writer::new(d_x.tensor.len(), d_x.accumulate);
            for r in b * per_block..((b + 1) * per_block).min(y.rows()) {
                // SAFETY: rows of different tasks are disjoint.
                writer.write(unsafe { d.row(r) }, |out| softmax_backward_row::<F>(d_x.accumulate, out, g.row(r), y.row(r)));
            }
        });
        Ok(())
    })
}
