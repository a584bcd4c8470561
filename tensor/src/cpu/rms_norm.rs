//! RMSNorm over rows. Backward makes d_x and, per block of rows, a partial d_weight in one pass; partial sums are added in block order.
//! Forward reads and writes each element once; backward reads x and d_out and writes d_x.

use super::access::Access;
use super::math::{Float, dot, sum_squares};
use super::parallel::{Pool, blocks};
use super::reduce::each_mut;
use super::rows::{Rows, RowsMut};
use super::vectorized::vectorized;
use super::with_float;
use crate::backend::Destination;
use crate::{Element, Result, Tensor};

/// Rows whose contributions to d_weight are summed before blocks are added.
pub(super) const ROWS: usize = 64;

vectorized! {
    fn forward_row<'a, F>(isa: I, out: &'a mut [F], x: &'a [F], weight: &'a [F], eps: F) -> F {
        let mean = sum_squares(isa, x) / F::from_f64(x.len() as f64);
        let rstd = F::ONE / (mean + eps).sqrt();
        out.iter_mut().zip(x).zip(weight).for_each(|((o, &x), &w)| *o = x * rstd * w);
        rstd
    }
}

vectorized! {
    /// `scratch` becomes d_x of the row; `d_weight` gains its contribution.
    fn backward_row<'a, F>(
        isa: I,
        scratch: &'a mut [F],
        d_weight: &'a mut [F],
        d_out: &'a [F],
        x: &'a [F],
        weight: &'a [F],
        rstd: F,
    ) -> () {
        // Slices of one length: bounds are checked once.
        let (scratch, d_weight) = (&mut scratch[..x.len()], &mut d_weight[..x.len()]);
        let (d_out, weight) = (&d_out[..x.len()], &weight[..x.len()]);
        for i in 0..x.len() {
            scratch[i] = d_out[i] * weight[i];
            d_weight[i] = F::fma(isa, d_out[i], x[i] * rstd, d_weight[i]);
        }
        let mean = dot(isa, scratch, x) * rstd / F::from_f64(x.len() as f64);
        let slope = mean * rstd;
        scratch.iter_mut().zip(x).for_each(|(s, &x)| *s = rstd * (*s - x * slope));
    }
}

vectorized! {
    fn put_row<'a, F>(isa: I, accumulate: bool, out: &'a mut [F], x: &'a [F]) -> () {
        match accumulate {
            true => out.iter_mut().zip(x).for_each(|(o, &x)| *o += x),
            false => out.copy_from_slice(x),
        }
    }
}

/// Writes or adds a row.
pub(super) fn put<F: Float>(accumulate: bool, out: &mut [F], x: &[F]) {
    put_row(accumulate, out, x);
}

/// `out = x * rstd * weight`.
pub(super) fn rms_norm(pool: &Pool, out: &Tensor, rstd: &Tensor, x: &Tensor, weight: &Tensor, eps: f64) -> Result<()> {
    with_float!("rms_norm", x.dtype(), F => {
        let access = Access::converting(pool, "rms_norm", &[x, weight], &[out, rstd])?;
        let (s, weight) = (access.output::<F>(rstd)?, access.view::<F>(weight)?.slice());
        let (out, x) = (RowsMut::<F>::of(&access, Destination::write(out))?, Rows::of(&access, x)?);
        let rows = x.count();
        let (count, per_block) = blocks(rows, weight.len() * 3);
        pool.run(count, |b| {
            let range = b * per_block..((b + 1) * per_block).min(rows);
            let (mut out, mut x) = (out.writer(), x.reader());
            // SAFETY: blocks of rows are disjoint.
            let rstd = unsafe { s.slice(range.clone()) };
            for (r, rstd) in range.zip(rstd) {
                let row = |out: &mut [F]| forward_row::<F>(out, x.row(r), weight, F::from_f64(eps));
                // SAFETY: as above.
                *rstd = unsafe { out.write(r, row) };
            }
        });
        Ok(())
    })
}

/// Gradients for x and the weight.
pub(super) fn rms_norm_backward(
    pool: &Pool,
    d_x: Option<Destination>,
    d_weight: Option<Destination>,
    d_out: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
) -> Result<()> {
    with_float!("rms_norm_backward", x.dtype(), F => {
        let outputs: Vec<&Tensor> = [d_x, d_weight].iter().flatten().map(|d| d.tensor).collect();
        let access = Access::converting(pool, "rms_norm_backward", &[d_out, x, weight, rstd], &outputs)?;
        let (d_out, x) = (Rows::<F>::of(&access, d_out)?, Rows::<F>::of(&access, x)?);
        let (weight, rstd) = (access.view::<F>(weight)?.slice(), access.view::<F>(rstd)?.slice());
        let accumulate = d_x.is_some_and(|d| d.accumulate);
        let d_x = d_x.map(|d| RowsMut::of(&access, d)).transpose()?;
        let (rows, c) = (x.count(), weight.len());
        let mut partial = vec![F::default(); rows.div_ceil(ROWS).max(1) * c];
        each_mut(pool, &mut partial, c.max(1), |b, partial| {
            let mut scratch = vec![F::default(); c];
            let (mut d_out, mut x, mut writer) = (d_out.reader(), x.reader(), d_x.map(|d_x| d_x.writer()));
            for (r, &rstd) in rstd.iter().enumerate().take(rows).skip(b * ROWS).take(ROWS) {
                backward_row::<F>(&mut scratch, partial, d_out.row(r), x.row(r), weight, rstd);
                if let Some(d_x) = &mut writer {
                    // SAFETY: blocks of rows are disjoint; d_out's row, which this may be, is no longer read.
                    unsafe { d_x.write(r, |row| put::<F>(accumulate, row, &scratch)) };
                }
            }
        });
        sum_blocks(&access, d_weight, &mut partial, c)
    })
}

/// Adds the blocks of partial rows in order into the first and puts it into the destination.
pub(super) fn sum_blocks<F: Float + Element>(
    access: &Access,
    out: Option<Destination>,
    partial: &mut [F],
    c: usize,
) -> Result<()> {
    let Some(out) = out else { return Ok(()) };
    let (first, rest) = partial.split_at_mut(c);
    rest.chunks(c.max(1)).for_each(|p| put(true, first, p));
    let view = access.destination::<F>(out)?;
    // SAFETY: the only reference to the locked output.
    put(out.accumulate, unsafe { view.slice(0..c) }, first);
    Ok(())
}
