//! GELU in its tanh form.

use super::{as_rows, expect_shape, same_kind, through_rows};
use crate::{Destination, Result, Tensor};

impl Tensor {
    /// `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))` of every element.
    pub fn gelu(&self) -> Result<Tensor> {
        same_kind("gelu", &[self])?;
        let x = as_rows("gelu", self)?;
        let out = Tensor::empty(x.shape(), x.dtype(), x.device())?;
        x.device().backend().gelu(&out, &x)?;
        out.mark_written();
        out.view(self.shape())
    }

    /// Gradient of [`Tensor::gelu`] for its input, this tensor.
    pub fn gelu_backward(&self, d_out: &Tensor, d_x: Destination) -> Result<()> {
        let op = "gelu_backward";
        same_kind(op, &[self, d_out, d_x.tensor])?;
        expect_shape(op, "d_out", d_out, self.shape())?;
        expect_shape(op, "d_x", d_x.tensor, self.shape())?;
        let (x, d_out) = (as_rows(op, self)?, as_rows(op, d_out)?);
        through_rows(op, d_x, |d_x| x.device().backend().gelu_backward(d_x, &d_out, &x))
    }
}
