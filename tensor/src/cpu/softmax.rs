//! Softmax over rows: `y = e^(x - max) / sum`; `d_x (+)= y (d_y - sum d_y y)`. Three sweeps over a row that stays in cache: reads and writes each element
//! once from memory, about 20 FLOP an element.

use super::access::Access;
use super::math::{dot, max};
use super::parallel::{Pool, blocks};
use super::rows::{Rows, RowsMut};
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
        let access = Access::new("softmax", &[x], &[out])?;
        let (out, x) = (RowsMut::<F>::of(&access, Destination::write(out))?, Rows::of(&access, x)?);
        let rows = x.count();
        let (count, per_block) = blocks(rows, x.width() * 16);
        pool.run(count, |b| {
            let (mut out, mut x) = (out.writer(), x.reader());
            for r in b * per_block..((b + 1) * per_block).min(rows) {
                // SAFETY: rows of different tasks are disjoint.
                unsafe { out.write(r, |out| softmax_row::<F>(out, x.row(r))) };
            }
        });
        Ok(())
    })
}

/// Gradient of every row.
pub(super) fn softmax_backward(pool: &Pool, d_x: Destination, d_y: &Tensor, y: &Tensor) -> Result<()> {
    with_float!("softmax_backward", y.dtype(), F => {
        let access = Access::new("softmax_backward", &[d_y, y], &[d_x.tensor])?;
        let accumulate = d_x.accumulate;
        let (d_x, d_y, y) = (RowsMut::<F>::of(&access, d_x)?, Rows::of(&access, d_y)?, Rows::of(&access, y)?);
        let rows = y.count();
        let (count, per_block) = blocks(rows, y.width() * 4);
        pool.run(count, |b| {
            let (mut d_x, mut d_y, mut y) = (d_x.writer(), d_y.reader(), y.reader());
            for r in b * per_block..((b + 1) * per_block).min(rows) {
                // SAFETY: rows of different tasks are disjoint.
                unsafe { d_x.write(r, |d_x| softmax_backward_row::<F>(accumulate, d_x, d_y.row(r), y.row(r))) };
            }
        });
        Ok(())
    })
}
