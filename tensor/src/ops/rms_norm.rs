//! Root-mean-square normalisation over the last dimension.

use super::{addition, as_rows, expect_shape, gradient_kind, same_kind, through_optional, through_vector, width};
use crate::{Destination, Residual, Result, Tensor};

/// What [`Tensor::rms_norm`] returns.
pub struct RmsNorm {
    /// The normalised tensor, of the input's shape.
    pub output: Tensor,
    /// `1 / sqrt(mean(x^2) + eps)` of every row, flat.
    pub rstd: Tensor,
}

impl RmsNorm {
    fn of_shape(self, shape: &[usize]) -> Result<RmsNorm> {
        Ok(RmsNorm { output: self.output.view(shape)?, ..self })
    }
}

const OP: &str = "rms_norm";

/// Of rows.
fn normalised(x: &Tensor, residual: Option<Residual>, weight: &Tensor, eps: f64) -> Result<RmsNorm> {
    let dtype = same_kind(OP, &[x, weight])?;
    expect_shape(OP, "the weight", weight, &[width(OP, x)?])?;
    let weight = weight.contiguous()?;
    let output = Tensor::empty(x.shape(), dtype, x.device())?;
    let rstd = Tensor::empty(&[x.dim(0)], dtype.accumulator(), x.device())?;
    x.device().backend().rms_norm(&output, &rstd, x, residual, &weight, eps)?;
    output.mark_written();
    rstd.mark_written();
    Ok(RmsNorm { output, rstd })
}

impl Tensor {
    /// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension; weight [C].
    pub fn rms_norm(&self, weight: &Tensor, eps: f64) -> Result<RmsNorm> {
        normalised(&as_rows(OP, self)?, None, weight, eps)?.of_shape(self.shape())
    }

    /// `self + addend`, both of one shape, and its [`Tensor::rms_norm`], in one pass over memory where the device can; the same to the bit as one
    /// after the other.
    ///
    /// ```
    /// use patchgpt_tensor::{Device, Tensor};
    /// # fn main() -> patchgpt_tensor::Result<()> {
    /// let device = Device::cpu()?;
    /// let (x, branch) = (Tensor::from_slice(&[2.0f32, 3.0], &[1, 2], &device)?, Tensor::from_slice(&[1.0f32, 1.0], &[1, 2], &device)?);
    /// let ones = Tensor::from_slice(&[1.0f32, 1.0], &[2], &device)?;
    /// let (sum, normed) = x.add_rms_norm(&branch, &ones, 0.0)?;
    /// assert_eq!(sum.to_vec::<f32>()?, [3.0, 4.0]);
    /// assert_eq!(normed.output.to_vec::<f32>()?, x.add(&branch)?.rms_norm(&ones, 0.0)?.output.to_vec::<f32>()?);
    /// # Ok(()) }
    /// ```
    pub fn add_rms_norm(&self, addend: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, RmsNorm)> {
        let [x, addend, sum] = &addition(OP, self, addend)?;
        let normed = normalised(x, Some(Residual { addend, sum }), weight, eps)?.of_shape(self.shape())?;
        sum.mark_written();
        Ok((sum.view(self.shape())?, normed))
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
