//! Rotary embedding: pairs (i, i + D/2) of every head turn by the angle of their position, forward or back. Reads and writes each element once.

use super::access::Access;
use super::math::Float;
use super::parallel::{Pool, blocks};
use super::rows::{Rows, RowsMut};
use super::vectorized::vectorized;
use super::with_float;
use crate::{Destination, Result, Tensor};

vectorized! {
    fn turn<'a, F>(isa: I, out: &'a mut [F], x: &'a [F], cos: &'a [F], sin: &'a [F], sign: F) -> () {
        let half = cos.len();
        let (low, high) = x.split_at(half);
        let (out_low, out_high) = out.split_at_mut(half);
        for i in 0..half {
            let (c, s) = (cos[i], sign * sin[i]);
            out_low[i] = low[i] * c - high[i] * s;
            out_high[i] = high[i] * c + low[i] * s;
        }
    }
}

/// Rotates every head of [B, T, H, D].
pub(super) fn rope(pool: &Pool, out: &Tensor, x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) -> Result<()> {
    with_float!("rope", x.dtype(), F => {
        let access = Access::converting(pool, "rope", &[x, cos, sin], &[out])?;
        let (out, rows) = (RowsMut::<F>::of(&access, Destination::write(out))?, Rows::of(&access, x)?);
        let (cos, sin) = (access.view::<F>(cos)?, access.view::<F>(sin)?);
        let sign = if inverse { -F::ONE } else { F::ONE };
        let (positions, heads) = (x.dim(1), x.dim(2));
        let (count, per_block) = blocks(x.dim(0) * positions, heads * x.dim(3) * 2);
        pool.run(count, |b| {
            let (mut rows, mut out) = rows.in_place(&out);
            for position in b * per_block..((b + 1) * per_block).min(x.dim(0) * positions) {
                let (c, s) = (cos.row(position % positions), sin.row(position % positions));
                for r in position * heads..(position + 1) * heads {
                    let row = rows.row(r);
                    // SAFETY: rows of different tasks are disjoint; in place the row was copied.
                    unsafe { out.write(r, |out| turn::<F>(out, row, c, s, sign)) };
                }
            }
        });
        Ok(())
    })
}
