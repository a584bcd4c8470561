//! Layer normalisation over the last dimension.

use super::{addition, as_rows, expect_shape, gradient_kind, same_kind, through_optional, through_vector, width};
use crate::{Destination, Residual, Result, Tensor};

/// What [`Tensor::layer_norm`] returns.
pub struct LayerNorm {
    /// The normalised tensor, of the input's shape.
    pub output: Tensor,
    /// Mean of every row, flat.
    pub mean: Tensor,
    /// `1 / sqrt(var(x) + eps)` of every row, flat.
    pub rstd: Tensor,
}

impl LayerNorm {
    fn of_shape(self, shape: &[usize]) -> Result<LayerNorm> {
        Ok(LayerNorm { output: self.output.view(shape)?, ..self })
    }
}

const OP: &str = "layer_norm";

/// Of rows.
fn normalised(x: &Tensor, residual: Option<Residual>, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<LayerNorm> {
    let dtype = same_kind(OP, &[x, weight, bias])?;
    let c = width(OP, x)?;
    expect_shape(OP, "the weight", weight, &[c])?;
    expect_shape(OP, "the bias", bias, &[c])?;
    let (weight, bias) = (weight.contiguous()?, bias.contiguous()?);
    let output = Tensor::empty(x.shape(), dtype, x.device())?;
    let mean = Tensor::empty(&[x.dim(0)], dtype.accumulator(), x.device())?;
    let rstd = Tensor::empty(&[x.dim(0)], dtype.accumulator(), x.device())?;
    x.device().backend().layer_norm(&output, &mean, &rstd, x, residual, &weight, &bias, eps)?;
    for t in [&output, &mean, &rstd] {
        t.mark_written();
    }
    Ok(LayerNorm { output, mean, rstd })
}

impl Tensor {
    /// `(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension; weight and bias [C].
    pub fn layer_norm(&self, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<LayerNorm> {
        normalised(&as_rows(OP, self)?, None, weight, bias, eps)?.of_shape(self.shape())
    }

    /// `self + addend`, both of one shape, and its [`Tensor::layer_norm`], in one pass over memory where the device can; the same to the bit as one
    /// after the other.
    pub fn add_layer_norm(
        &self,
        addend: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        eps: f64,
    ) -> Result<(Tensor, LayerNorm)> {
        let [x, addend, sum] = &addition(OP, self, addend)?;
        let normed = normalised(x, Some(Residual { addend, sum }), weight, bias, eps)?.of_shape(self.shape())?;
        sum.mark_written();
        Ok((sum.view(self.shape())?, normed))
    }

    /// Gradients of [`Tensor::layer_norm`] for its input, this tensor, its weight and its bias (`gradients` in this order).
    pub fn layer_norm_backward(
        &self,
        weight: &Tensor,
        mean: &Tensor,
        rstd: &Tensor,
        d_out: &Tensor,
        gradients: [Option<Destination>; 3],
    ) -> Result<()> {
        let op = "layer_norm_backward";
        same_kind(op, &[self, weight, d_out])?;
        let c = width(op, self)?;
        expect_shape(op, "d_out", d_out, self.shape())?;
        expect_shape(op, "the weight", weight, &[c])?;
        let (x, weight, d_out) = (as_rows(op, self)?, weight.contiguous()?, as_rows(op, d_out)?);
        expect_shape(op, "the mean", mean, &[x.dim(0)])?;
        expect_shape(op, "rstd", rstd, &[x.dim(0)])?;
        for (what, d, shape) in
            [("d_x", gradients[0], self.shape()), ("d_weight", gradients[1], &[c]), ("d_bias", gradients[2], &[c])]
        {
            if let Some(d) = d {
                gradient_kind(op, self, d.tensor)?;
                expect_shape(op, what, d.tensor, shape)?;
            }
        }
        let [d_x, d_weight, d_bias] = gradients;
        through_optional(op, d_x, |d_x| {
            through_vector(op, d_weight, |d_weight| {
                through_vector(op, d_bias, |d_bias| {
                    x.device().backend().layer_norm_backward(d_x, d_weight, d_bias, &d_out, &x, &weight, mean, rstd)
                })
            })
        })
    }
}
