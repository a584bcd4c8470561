//! RMSNorm over rows. Backward makes d_x and, per block of rows, a partial d_weight in one pass; partial sums are added in block order.
//! Forward reads and writes each element once; backward reads x and d_out and writes d_x.

use std::ops::Range;

use super::access::{Access, View, ViewMut};
use super::isa::{Isa, Kernel, dispatch_bf16};
use super::math::{Float, dot, sum_squares};
use super::norm::{Gradient, Input, ROWS, add_blocks, put_weight};
use super::parallel::{Pool, blocks};
use super::reduce::each_mut;
use super::rows::Place;
use super::stored::{Stored, with_stored};
use super::stream::Writer;
use super::strips::{map_wide, wide};
use super::with_float;
use crate::backend::{Destination, Residual};
use crate::{Element, Result, Tensor};

/// A task of the forward pass.
struct Forward<'a, F, S> {
    input: Input<'a, S>,
    out: ViewMut<'a, S>,
    rstd: ViewMut<'a, F>,
    weight: &'a [F],
    eps: F,
    /// Elements of the output, of which the task makes rows `range`.
    len: usize,
    range: Range<usize>,
}

impl<F: Float + Element, S: Stored<F> + Element> Kernel for Forward<'_, F, S> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Forward { input, out, rstd, weight, eps, len, range } = self;
        let (mut writer, mut buffer) = (Writer::new(len, false), vec![F::ZERO; weight.len()]);
        let n = F::from_f64(weight.len() as f64);
        // SAFETY: blocks of rows are disjoint.
        let rstds = unsafe { rstd.slice(range.clone()) };
        for (r, to) in range.zip(rstds) {
            // SAFETY: as above.
            let (x, row) = unsafe { (input.row(isa, r, &mut buffer), out.row(r)) };
            let rstd = F::ONE / (sum_squares(isa, x) / n + eps).sqrt();
            map_wide(isa, false, writer.begin(row), [x, weight], |[x, w]: [F; 2]| x * rstd * w);
            writer.end(row);
            *to = rstd;
        }
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
    with_float!("rms_norm", x.dtype(), F => with_stored!(x.dtype(), F, S => {
        let (inputs, outputs) = Input::<S>::tensors(x, residual);
        let (inputs, outputs) = ([&inputs[..], &[weight]].concat(), [&outputs[..], &[out, rstd]].concat());
        let access = Access::converting(pool, "rms_norm", &inputs, &outputs)?;
        let (rstd, weight) = (access.output::<F>(rstd)?, access.view::<F>(weight)?.slice());
        let (y, input) = (access.output::<S>(out)?, Input::<S>::of(&access, x, residual)?);
        let (rows, len, eps) = (input.count(), out.len(), F::from_f64(eps));
        let (count, per_block) = blocks(rows, weight.len() * 3);
        pool.run(count, |b| {
            let range = b * per_block..((b + 1) * per_block).min(rows);
            dispatch_bf16(Forward { input, out: y, rstd, weight, eps, len, range });
        });
        Ok(())
    }))
}

/// A task of the backward pass.
struct Backward<'a, F, S> {
    d_x: Option<Gradient<'a, F>>,
    /// What the rows of the task contribute to the gradient of the weight.
    d_weight: &'a mut [F],
    d_out: View<'a, S>,
    x: View<'a, S>,
    weight: &'a [F],
    rstd: &'a [F],
    range: Range<usize>,
}

impl<F: Float + Element, S: Stored<F> + Element> Kernel for Backward<'_, F, S> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Backward { mut d_x, d_weight, d_out, x, weight, rstd, range } = self;
        let c = weight.len();
        let (mut wide_d, mut wide_x, mut scaled) = (vec![F::ZERO; c], vec![F::ZERO; c], vec![F::ZERO; c]);
        for r in range {
            let (d_out, x, rstd) = (wide(isa, d_out.row(r), &mut wide_d), wide(isa, x.row(r), &mut wide_x), rstd[r]);
            // Slices of one length: bounds are checked once.
            let (d_out, x, weight) = (&d_out[..c], &x[..c], &weight[..c]);
            let (scaled, d_weight) = (&mut scaled[..c], &mut d_weight[..c]);
            for i in 0..c {
                scaled[i] = d_out[i] * weight[i];
                d_weight[i] = F::fma(isa, d_out[i], x[i] * rstd, d_weight[i]);
            }
            let Some(d_x) = &mut d_x else { continue };
            let slope = dot(isa, scaled, x) * rstd / F::from_f64(c as f64) * rstd;
            // SAFETY: blocks of rows are disjoint; d_out's row, which this may be, is no longer read.
            unsafe { d_x.put(isa, r, [scaled, x], |[s, x]: [F; 2]| rstd * (s - x * slope)) };
        }
    }
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
    with_float!("rms_norm_backward", x.dtype(), F => with_stored!(x.dtype(), F, S => {
        let outputs: Vec<&Tensor> = [d_x, d_weight].iter().flatten().map(|d| d.tensor).collect();
        let access = Access::converting(pool, "rms_norm_backward", &[d_out, x, weight, rstd], &outputs)?;
        let (d_out, x) = (access.view::<S>(d_out)?, access.view::<S>(x)?);
        let (weight, rstd) = (access.view::<F>(weight)?.slice(), access.view::<F>(rstd)?.slice());
        let d_x = d_x.map(|d_x| -> Result<_> { Ok((Place::<F>::of(&access, d_x.tensor)?, d_x)) }).transpose()?;
        let (rows, c) = (x.rows(), weight.len());
        let mut partial = vec![F::default(); rows.div_ceil(ROWS).max(1) * c];
        each_mut(pool, &mut partial, c.max(1), |b, d_weight| {
            let range = b * ROWS..((b + 1) * ROWS).min(rows);
            let d_x = d_x.map(|(place, d_x)| Gradient::of(place, d_x));
            dispatch_bf16(Backward { d_x, d_weight, d_out, x, weight, rstd, range });
        });
        add_blocks(&mut partial, c);
        put_weight(&access, d_weight, &partial[..c])
    }))
}
