//! Rotary embedding: pairs (i, i + D/2) of every head turn by the angle of their position, forward or back. Reads and writes each element once.

use super::access::Access;
use super::math::Float;
use super::parallel::{Pool, blocks};
use super::rows::{Rows, RowsMut};
use super::vectorized::vectorized;
use super::with_float;
use crate::{Destination, Error, Result, Tensor};

vectorized! {
    /// Heads of one position, one after the other.
    fn turn<'a, F>(isa: I, out: &'a mut [F], x: &'a [F], cos: &'a [F], sin: &'a [F], sign: F) -> () {
        let half = cos.len();
        for (out, x) in out.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
            let ((low, high), (out_low, out_high)) = (x.split_at(half), out.split_at_mut(half));
            // Slices of one length: bounds are checked once.
            let (high, out_low, out_high, sin) = (&high[..half], &mut out_low[..half], &mut out_high[..half], &sin[..half]);
            for i in 0..half {
                let (c, s) = (cos[i], sign * sin[i]);
                out_low[i] = low[i] * c - high[i] * s;
                out_high[i] = high[i] * c + low[i] * s;
            }
        }
    }
}

/// Rotates every head of [B, T, H, D].
pub(super) fn rope(pool: &Pool, out: &Tensor, x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) -> Result<()> {
    if x.is_empty() {
        return Ok(());
    }
    // Where the heads of a position lie side by side in both, they are a row together.
    let (positions, shape) = (x.dim(0) * x.dim(1), [x.dim(0), x.dim(1), x.dim(2) * x.dim(3)]);
    let rows = |tensor: &Tensor| Ok::<_, Error>(tensor.layout().reshape(&shape)?.map(|rows| tensor.with_layout(rows)));
    let (out, x) = match (rows(out)?, rows(x)?) {
        (Some(out), Some(x)) => (out, x),
        _ => (out.clone(), x.clone()),
    };
    with_float!("rope", x.dtype(), F => {
        let access = Access::converting(pool, "rope", &[&x, cos, sin], &[&out])?;
        let (out, x) = (RowsMut::<F>::of(&access, Destination::write(&out))?, Rows::of(&access, &x)?);
        let (cos, sin) = (access.view::<F>(cos)?, access.view::<F>(sin)?);
        let sign = if inverse { -F::ONE } else { F::ONE };
        let per_position = x.count() / positions;
        let (count, per_block) = blocks(positions, per_position * x.width() * 2);
        pool.run(count, |b| {
            let (mut x, mut out) = x.in_place(&out);
            for position in b * per_block..((b + 1) * per_block).min(positions) {
                let angle = position % shape[1];
                for r in position * per_position..(position + 1) * per_position {
                    let row = x.row(r);
                    // SAFETY: rows of different tasks are disjoint; in place the row was copied.
                    unsafe { out.write(r, |out| turn::<F>(out, row, cos.row(angle), sin.row(angle), sign)) };
                }
            }
        });
        Ok(())
    })
}
