//! LayerNorm over rows; the variance is taken in a second sweep over the row, around the mean. Backward makes d_x and, per block of rows, partial
//! sums of d_weight and d_bias in one pass. Forward reads and writes each element once; backward reads x and d_out and writes d_x.

use std::ops::Range;

use super::access::{Access, View, ViewMut};
use super::isa::{Isa, Kernel, dispatch_bf16};
use super::math::{ACCUMULATORS, Float, fold, sum, sum_squares_around};
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
    mean: ViewMut<'a, F>,
    rstd: ViewMut<'a, F>,
    weight: &'a [F],
    bias: &'a [F],
    eps: F,
    /// Elements of the output, of which the task makes rows `range`.
    len: usize,
    range: Range<usize>,
}

impl<F: Float + Element, S: Stored<F> + Element> Kernel for Forward<'_, F, S> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Forward { input, out, mean, rstd, weight, bias, eps, len, range } = self;
        let (mut writer, mut buffer) = (Writer::new(len, false), vec![F::ZERO; weight.len()]);
        let n = F::from_f64(weight.len() as f64);
        // SAFETY: blocks of rows are disjoint.
        let (means, rstds) = unsafe { (mean.slice(range.clone()), rstd.slice(range.clone())) };
        for (i, r) in range.enumerate() {
            // SAFETY: as above.
            let (x, row) = unsafe { (input.row(isa, r, &mut buffer), out.row(r)) };
            let mean = sum(isa, x) / n;
            let rstd = F::ONE / (sum_squares_around(isa, x, mean) / n + eps).sqrt();
            let normalised = |[x, w, b]: [F; 3]| F::fma(isa, (x - mean) * rstd, w, b);
            map_wide(isa, false, writer.begin(row), [x, weight, bias], normalised);
            writer.end(row);
            (means[i], rstds[i]) = (mean, rstd);
        }
    }
}

/// N values of each of a row's d_out, x and weight. `scaled` becomes `d_out * weight`; the gradients of weight and bias gain their contributions; the
/// partial sums of `scaled` and of its products with the normalised x theirs.
#[inline(always)]
fn add_part<F: Float, I: Isa, const N: usize>(
    isa: I,
    [d_out, x, weight]: [&[F; N]; 3],
    (mean, rstd): (F, F),
    [scaled, d_weight, d_bias]: [&mut [F; N]; 3],
    [sums, products]: [&mut [F; N]; 2],
) {
    // In registers, since a compiler cannot know that what is written is not what is read.
    let (mut values, mut weights, mut biases) = ([F::ZERO; N], *d_weight, *d_bias);
    for i in 0..N {
        let (d, normal) = (d_out[i], (x[i] - mean) * rstd);
        values[i] = d * weight[i];
        weights[i] = F::fma(isa, d, normal, weights[i]);
        biases[i] += d;
        sums[i] += values[i];
        products[i] = F::fma(isa, values[i], normal, products[i]);
    }
    (*scaled, *d_weight, *d_bias) = (values, weights, biases);
}

/// [`add_part`] for a row; gives the sums of `scaled` and of its products with the normalised x.
#[inline(always)]
fn add_row<F: Float, I: Isa>(
    isa: I,
    [d_out, x, weight]: [&[F]; 3],
    statistics: (F, F),
    [scaled, d_weight, d_bias]: [&mut [F]; 3],
) -> [F; 2] {
    const N: usize = ACCUMULATORS;
    let (mut sums, mut products) = ([F::ZERO; N], [F::ZERO; N]);
    let ((d, d_rest), (x, x_rest)) = (d_out.as_chunks::<N>(), x.as_chunks::<N>());
    let ((w, w_rest), (s, s_rest)) = (weight.as_chunks::<N>(), scaled.as_chunks_mut::<N>());
    let ((d_w, d_w_rest), (d_b, d_b_rest)) = (d_weight.as_chunks_mut::<N>(), d_bias.as_chunks_mut::<N>());
    for i in 0..x.len() {
        let gain = [&mut s[i], &mut d_w[i], &mut d_b[i]];
        add_part(isa, [&d[i], &x[i], &w[i]], statistics, gain, [&mut sums, &mut products]);
    }
    for i in 0..x_rest.len() {
        let read = [&d_rest[i], &x_rest[i], &w_rest[i]].map(std::array::from_ref);
        let gain = [&mut s_rest[i], &mut d_w_rest[i], &mut d_b_rest[i]].map(std::array::from_mut);
        let partial = [&mut sums[i], &mut products[i]].map(std::array::from_mut);
        add_part::<F, I, 1>(isa, read, statistics, gain, partial);
    }
    [fold(sums, |a, b| a + b), fold(products, |a, b| a + b)]
}

/// A task of the backward pass.
struct Backward<'a, F, S> {
    d_x: Option<Gradient<'a, F>>,
    /// What the rows of the task contribute to the gradients of the weight and of the bias.
    d_weight: &'a mut [F],
    d_bias: &'a mut [F],
    d_out: View<'a, S>,
    x: View<'a, S>,
    weight: &'a [F],
    mean: &'a [F],
    rstd: &'a [F],
    range: Range<usize>,
}

impl<F: Float + Element, S: Stored<F> + Element> Kernel for Backward<'_, F, S> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Backward { mut d_x, d_weight, d_bias, d_out, x, weight, mean, rstd, range } = self;
        let c = weight.len();
        let (mut wide_d, mut wide_x, mut scaled) = (vec![F::ZERO; c], vec![F::ZERO; c], vec![F::ZERO; c]);
        let n = F::from_f64(c as f64);
        for r in range {
            let (d_out, x) = (wide(isa, d_out.row(r), &mut wide_d), wide(isa, x.row(r), &mut wide_x));
            let (mean, rstd) = (mean[r], rstd[r]);
            let sums = add_row(isa, [d_out, x, weight], (mean, rstd), [&mut scaled, d_weight, d_bias]);
            let Some(d_x) = &mut d_x else { continue };
            let (first, second) = (sums[0] / n, sums[1] / n);
            let gradient = |[s, x]: [F; 2]| rstd * (s - first - (x - mean) * rstd * second);
            // SAFETY: blocks of rows are disjoint; d_out's row, which this may be, is no longer read.
            unsafe { d_x.put(isa, r, [&scaled, x], gradient) };
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
    with_float!("layer_norm", x.dtype(), F => with_stored!(x.dtype(), F, S => {
        let (inputs, outputs) = Input::<S>::tensors(x, residual);
        let (inputs, outputs) = ([&inputs[..], &[weight, bias]].concat(), [&outputs[..], &[out, mean, rstd]].concat());
        let access = Access::converting(pool, "layer_norm", &inputs, &outputs)?;
        let (mean, rstd) = (access.output::<F>(mean)?, access.output::<F>(rstd)?);
        let (y, input) = (access.output::<S>(out)?, Input::<S>::of(&access, x, residual)?);
        let (weight, bias) = (access.view::<F>(weight)?.slice(), access.view::<F>(bias)?.slice());
        let (rows, len, eps) = (input.count(), out.len(), F::from_f64(eps));
        let (count, per_block) = blocks(rows, weight.len() * 4);
        pool.run(count, |b| {
            let range = b * per_block..((b + 1) * per_block).min(rows);
            dispatch_bf16(Forward { input, out: y, mean, rstd, weight, bias, eps, len, range });
        });
        Ok(())
    }))
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
    with_float!("layer_norm_backward", x.dtype(), F => with_stored!(x.dtype(), F, S => {
        let outputs: Vec<&Tensor> = [d_x, d_weight, d_bias].iter().flatten().map(|d| d.tensor).collect();
        let access = Access::converting(pool, "layer_norm_backward", &[d_out, x, weight, mean, rstd], &outputs)?;
        let (d_out, x) = (access.view::<S>(d_out)?, access.view::<S>(x)?);
        let weight = access.view::<F>(weight)?.slice();
        let (mean, rstd) = (access.view::<F>(mean)?.slice(), access.view::<F>(rstd)?.slice());
        let d_x = d_x.map(|d_x| -> Result<_> { Ok((Place::<F>::of(&access, d_x.tensor)?, d_x)) }).transpose()?;
        let (rows, c) = (x.rows(), weight.len());
        // Each block holds a partial row of d_weight and one of d_bias.
        let mut partial = vec![F::default(); rows.div_ceil(ROWS).max(1) * 2 * c];
        each_mut(pool, &mut partial, (2 * c).max(1), |b, partial| {
            let (d_weight, d_bias) = partial.split_at_mut(c);
            let range = b * ROWS..((b + 1) * ROWS).min(rows);
            let d_x = d_x.map(|(place, d_x)| Gradient::of(place, d_x));
            dispatch_bf16(Backward { d_x, d_weight, d_bias, d_out, x, weight, mean, rstd, range });
        });
        add_blocks(&mut partial, 2 * c);
        put_weight(&access, d_weight, &partial[..c])?;
        put_weight(&access, d_bias, &partial[c..2 * c])
    }))
}
