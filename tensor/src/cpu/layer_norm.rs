//! LayerNorm over rows; the variance is taken in a second sweep over the row, around the mean. Backward makes d_x and, per block of rows, partial
//! sums of d_weight and d_bias in one pass. Forward reads and writes each element once; backward reads x and d_out and writes d_x.

use super::access::Access;
use super::isa::Isa;
use super::math::{ACCUMULATORS, Float, fold, sum, sum_squares_around};
use super::parallel::{Pool, blocks};
use super::reduce::each_mut;
use super::rms_norm::{Input, ROWS, put, sum_blocks};
use super::rows::{Rows, RowsMut};
use super::vectorized::vectorized;
use super::with_float;
use crate::backend::{Destination, Residual};
use crate::{Result, Tensor};

vectorized! {
    /// Normalises a row; gives its mean and the reciprocal of its deviation.
    fn forward_row<'a, F>(isa: I, out: &'a mut [F], x: &'a [F], weight: &'a [F], bias: &'a [F], eps: F) -> (F, F) {
        let n = F::from_f64(x.len() as f64);
        let mean = sum(isa, x) / n;
        let rstd = F::ONE / (sum_squares_around(isa, x, mean) / n + eps).sqrt();
        out.iter_mut().zip(x).zip(weight).zip(bias).for_each(|(((o, &x), &w), &b)| *o = F::fma(isa, (x - mean) * rstd, w, b));
        (mean, rstd)
    }
}

/// What a row's backward reads.
#[derive(Clone, Copy)]
struct Row<'a, F> {
    d_out: &'a [F],
    x: &'a [F],
    weight: &'a [F],
    mean: F,
    rstd: F,
}

/// A part of a row's backward: of its `d_out`, `x` and `weight`. The gradients of weight and bias gain their contributions; the partial sums of
/// `d_out * weight` and of its products with the normalised x, element i to number i, theirs.
#[inline(always)]
fn add_part<F: Float, I: Isa>(
    isa: I,
    [d_out, x, weight]: [&[F]; 3],
    (mean, rstd): (F, F),
    [d_weight, d_bias]: [&mut [F]; 2],
    [sums, products]: &mut [[F; ACCUMULATORS]; 2],
) {
    for i in 0..x.len() {
        let (d, normal) = (d_out[i], (x[i] - mean) * rstd);
        let d_normal = d * weight[i];
        d_weight[i] = F::fma(isa, d, normal, d_weight[i]);
        d_bias[i] += d;
        sums[i] += d_normal;
        products[i] = F::fma(isa, d_normal, normal, products[i]);
    }
}

vectorized! {
    /// `d_x` becomes the row's gradient; `d_weight` and `d_bias` gain the row's contributions.
    fn backward_row<'a, F>(isa: I, d_x: &'a mut [F], d_weight: &'a mut [F], d_bias: &'a mut [F], row: Row<'a, F>) -> () {
        let Row { d_out, x, weight, mean, rstd } = row;
        let c = x.len();
        // Slices of one length: bounds are checked once.
        let (d_x, d_out, weight, d_weight, d_bias) =
            (&mut d_x[..c], &d_out[..c], &weight[..c], &mut d_weight[..c], &mut d_bias[..c]);
        let ((d, d_rest), (xs, x_rest)) = (d_out.as_chunks::<ACCUMULATORS>(), x.as_chunks::<ACCUMULATORS>());
        let (w, w_rest) = weight.as_chunks::<ACCUMULATORS>();
        let (d_w, d_w_rest) = d_weight.as_chunks_mut::<ACCUMULATORS>();
        let (d_b, d_b_rest) = d_bias.as_chunks_mut::<ACCUMULATORS>();
        let mut partial = [[F::ZERO; ACCUMULATORS]; 2];
        for i in 0..xs.len() {
            add_part(isa, [&d[i], &xs[i], &w[i]], (mean, rstd), [&mut d_w[i], &mut d_b[i]], &mut partial);
        }
        add_part(isa, [d_rest, x_rest, w_rest], (mean, rstd), [d_w_rest, d_b_rest], &mut partial);
        let n = F::from_f64(c as f64);
        let [first, second] = partial.map(|partial| fold(partial, |a, b| a + b) / n);
        for i in 0..c {
            let normal = (x[i] - mean) * rstd;
            d_x[i] = rstd * (d_out[i] * weight[i] - first - normal * second);
        }
    }
}

/// `out = (x - mean) * rstd * weight + bias`, with `sum = x + addend` in place of x where there is a residual.
#[allow(clippy::too_many_arguments)]
pub(super) fn layer_norm(
    pool: &Pool,
    out: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
    x: &Tensor,
    residual: Option<Residual>,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<()> {
    with_float!("layer_norm", x.dtype(), F => {
        let (inputs, outputs) = Input::<F>::tensors(x, residual);
        let (inputs, outputs) = ([&inputs[..], &[weight, bias]].concat(), [&outputs[..], &[out, mean, rstd]].concat());
        let access = Access::converting(pool, "layer_norm", &inputs, &outputs)?;
        let (m, s) = (access.output::<F>(mean)?, access.output::<F>(rstd)?);
        let (out, x) = (RowsMut::<F>::of(&access, Destination::write(out))?, Input::of(&access, x, residual)?);
        let (weight, bias) = (access.view::<F>(weight)?.slice(), access.view::<F>(bias)?.slice());
        let rows = x.count();
        let (count, per_block) = blocks(rows, weight.len() * 4);
        pool.run(count, |b| {
            let range = b * per_block..((b + 1) * per_block).min(rows);
            let (mut out, mut x) = (out.writer(), x.reader());
            // SAFETY: blocks of rows are disjoint.
            let (mean, rstd) = unsafe { (m.slice(range.clone()), s.slice(range.clone())) };
            for (i, r) in range.enumerate() {
                // SAFETY: as above.
                (mean[i], rstd[i]) = unsafe {
                    let x = x.row(r);
                    out.write(r, |out| forward_row::<F>(out, x, weight, bias, F::from_f64(eps)))
                };
            }
        });
        Ok(())
    })
}

/// Gradients for x, the weight and the bias.
#[allow(clippy::too_many_arguments)]
pub(super) fn layer_norm_backward(
    pool: &Pool,
    d_x: Option<Destination>,
    d_weight: Option<Destination>,
    d_bias: Option<Destination>,
    d_out: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
) -> Result<()> {
    with_float!("layer_norm_backward", x.dtype(), F => {
        let outputs: Vec<&Tensor> = [d_x, d_weight, d_bias].iter().flatten().map(|d| d.tensor).collect();
        let access = Access::converting(pool, "layer_norm_backward", &[d_out, x, weight, mean, rstd], &outputs)?;
        let (d_out, x) = (Rows::<F>::of(&access, d_out)?, Rows::<F>::of(&access, x)?);
        let weight = access.view::<F>(weight)?.slice();
        let (mean, rstd) = (access.view::<F>(mean)?.slice(), access.view::<F>(rstd)?.slice());
        let accumulate = d_x.is_some_and(|d| d.accumulate);
        let d_x = d_x.map(|d| RowsMut::of(&access, d)).transpose()?;
        let (rows, c) = (x.count(), weight.len());
        // Each block holds a partial row of d_weight and one of d_bias.
        let mut partial = vec![F::default(); rows.div_ceil(ROWS).max(1) * 2 * c];
        each_mut(pool, &mut partial, (2 * c).max(1), |b, partial| {
            let mut row_d_x = vec![F::default(); c];
            let (mut d_out, mut x, mut writer) = (d_out.reader(), x.reader(), d_x.map(|d_x| d_x.writer()));
            let (d_weight, d_bias) = partial.split_at_mut(c);
            for r in b * ROWS..((b + 1) * ROWS).min(rows) {
                let row = Row { d_out: d_out.row(r), x: x.row(r), weight, mean: mean[r], rstd: rstd[r] };
                backward_row::<F>(&mut row_d_x, d_weight, d_bias, row);
                if let Some(d_x) = &mut writer {
                    // SAFETY: blocks of rows are disjoint; d_out's row, which this may be, is no longer read.
                    unsafe { d_x.write(r, |row| put::<F>(accumulate, row, &row_d_x)) };
                }
            }
        });
        let (first, rest) = partial.split_at_mut(2 * c);
        rest.chunks(2 * c.max(1)).for_each(|p| put::<F>(true, first, p));
        let (weights, biases) = first.split_at_mut(c);
        sum_blocks::<F>(&access, d_weight, weights, c)?;
        sum_blocks::<F>(&access, d_bias, biases, c)
    })
}
