//! RMSNorm over rows. Backward makes d_x and, per block of rows, a partial d_weight in one pass; partial sums are added in block order.
//! Forward reads and writes each element once; backward reads x and d_out and writes d_x.

use super::access::Access;
use super::math::{Float, dot, sum_squares};
use super::parallel::{Pool, blocks};
use super::reduce::each_mut;
use super::rows::{Reader, Rows, RowsMut, Value, Writer};
use super::vectorized::vectorized;
use super::with_float;
use crate::backend::{Destination, Residual};
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

vectorized! {
    fn add_row<'a, F>(isa: I, out: &'a mut [F], x: &'a [F], addend: &'a [F]) -> () {
        out.iter_mut().zip(x).zip(addend).for_each(|((o, &x), &a)| *o = x + a)
    }
}

/// What a norm is taken of: rows of x, or of `x + addend`, which are then written to a tensor of their own.
#[derive(Clone, Copy)]
pub(super) struct Input<'a, F> {
    x: Rows<'a, F>,
    /// The addend, and the sum as it is written and read.
    residual: Option<(Rows<'a, F>, RowsMut<'a, F>, Rows<'a, F>)>,
}

impl<'a, F: Value> Input<'a, F> {
    /// The tensors that are read and those that are written, for the locks.
    pub(super) fn tensors<'t>(x: &'t Tensor, residual: Option<Residual<'t>>) -> (Vec<&'t Tensor>, Vec<&'t Tensor>) {
        let addend = residual.map(|residual| residual.addend);
        ([Some(x), addend].into_iter().flatten().collect(), residual.map(|residual| residual.sum).into_iter().collect())
    }

    pub(super) fn of(access: &'a Access, x: &'a Tensor, residual: Option<Residual<'a>>) -> Result<Self> {
        let residual = residual.map(|Residual { addend, sum }| -> Result<_> {
            let to = RowsMut::of(access, Destination::write(sum))?.read_again();
            Ok((Rows::of(access, addend)?, to, Rows::of(access, sum)?))
        });
        Ok(Input { x: Rows::of(access, x)?, residual: residual.transpose()? })
    }

    /// How many rows there are.
    pub(super) fn count(&self) -> usize {
        self.x.count()
    }

    /// For one task, which takes rows of its own.
    pub(super) fn reader(&self) -> InputReader<'a, F> {
        let residual = self.residual.map(|(addend, to, sum)| (addend.reader(), to.writer(), sum.reader()));
        InputReader { x: self.x.reader(), residual }
    }
}

/// How a task reads what a norm is taken of.
pub(super) struct InputReader<'a, F> {
    x: Reader<'a, F>,
    residual: Option<(Reader<'a, F>, Writer<'a, F>, Reader<'a, F>)>,
}

impl<F: Value> InputReader<'_, F> {
    /// Row `row`, as it is stored: a sum is rounded to its type first.
    ///
    /// # Safety
    /// The row belongs to this task.
    pub(super) unsafe fn row(&mut self, row: usize) -> &[F] {
        let Some((addend, to, sum)) = &mut self.residual else { return self.x.row(row) };
        let (x, addend) = (self.x.row(row), addend.row(row));
        // SAFETY: the caller's promise.
        unsafe { to.write(row, |to| add_row::<F>(to, x, addend)) };
        sum.row(row)
    }
}

/// `out = x * rstd * weight`, with `sum = x + addend` in place of x where there is a residual.
pub(super) fn rms_norm(
    pool: &Pool,
    out: &Tensor,
    rstd: &Tensor,
    x: &Tensor,
    residual: Option<Residual>,
    weight: &Tensor,
    eps: f64,
) -> Result<()> {
    with_float!("rms_norm", x.dtype(), F => {
        let (inputs, outputs) = Input::<F>::tensors(x, residual);
        let (inputs, outputs) = ([&inputs[..], &[weight]].concat(), [&outputs[..], &[out, rstd]].concat());
        let access = Access::converting(pool, "rms_norm", &inputs, &outputs)?;
        let (s, weight) = (access.output::<F>(rstd)?, access.view::<F>(weight)?.slice());
        let (out, x) = (RowsMut::<F>::of(&access, Destination::write(out))?, Input::of(&access, x, residual)?);
        let rows = x.count();
        let (count, per_block) = blocks(rows, weight.len() * 3);
        pool.run(count, |b| {
            let range = b * per_block..((b + 1) * per_block).min(rows);
            let (mut out, mut x) = (out.writer(), x.reader());
            // SAFETY: blocks of rows are disjoint.
            let rstd = unsafe { s.slice(range.clone()) };
            for (r, rstd) in range.zip(rstd) {
                // SAFETY: as above.
                *rstd = unsafe {
                    let x = x.row(r);
                    out.write(r, |out| forward_row::<F>(out, x, weight, F::from_f64(eps)))
                };
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
