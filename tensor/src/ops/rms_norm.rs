//! Root-mean-square normalisation over the last dimension.

use super::{as_rows, expect_shape, gradient_kind, same_kind, through_optional, through_vector, width};
use crate::{Destination, Result, Tensor};

/// What [`Tensor::rms_norm`] returns.
pub struct RmsNorm {
    /// The normalised tensor, of the input's shape.
    pub output: Tensor,
    /// `1 / sqrt(mean(x^2) + eps)` of every row, flat.
    pub rstd: Tensor,
}

impl Tensor {
    /// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension; weight [C].
    pub fn rms_norm(&self, weight: &Tensor, eps: f64) -> Result<RmsNorm> {
        let op = "rms_norm";
        let dtype = same_kind(op, &[self, weight])?;
        expect_shape(op, "the weight", weight, &[width(op, self)?])?;
        let (x, weight) = (as_rows(op, self)?, weight.contiguous()?);
        let out = Tensor::empty(x.shape(), dtype, x.device())?;
        let rstd = Tensor::empty(&[x.dim(0)], dtype.accumulator(), x.device())?;
        x.device().backend().rms_norm(&out, &rstd, &x, &weight, eps)?;
        out.mark_written();
        rstd.mark_written();
        Ok(RmsNorm { output: out.view(self.shape())?, rstd })
    }

    /// Gradients of [`Tensor::rms_norm`] for its input, this tensor, and its weight.
    pub fn rms_norm_backward(
        &self,
        weight: &Tensor,
        rstd: &Tensor,
        d_out: &Tensor,
        d_x: Option<Destination>,
        d_weight: Option<Destination>,
    ) -> Result<()> {
        let op = "rms_norm_backward";
        same_kind(op, &[self, weight, d_out])?;
        let c = width(op, self)?;
        expect_shape(op, "d_out", d_out, self.shape())?;
        expect_shape(op, "the weight", weight, &[c])?;
        let (x, weight, d_out) = (as_rows(op, self)?, weight.contiguous()?, as_rows(op, d_out)?);
        expect_shape(op, "rstd", rstd, &[x.dim(0)])?;
        if let Some(d) = d_x {
            gradient_kind(op, self, d.tensor)?;
            expect_shape(op, "d_x", d.tensor, self.shape())?;
        }
        if let Some(d) = d_weight {
            gradient_kind(op, self, d.tensor)?;
            expect_shape(op, "d_weight", d.tensor, &[c])?;
        }
        through_optional(op, d_x, |d_x| {
            through_vector(op, d_weight, |d_weight| {
                x.device().backend().rms_norm_backward(d_x, d_weight, &d_out, &x, &weight, rstd)
            })
        })
    }
}
