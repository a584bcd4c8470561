//! Softmax over the last dimension.

use super::{as_rows, expect_shape, same_kind, through_rows};
use crate::{Destination, Result, Tensor};

impl Tensor {
    /// `e^(x_i - max) / sum_j e^(x_j - max)` over the last dimension.
    pub fn softmax(&self) -> Result<Tensor> {
        same_kind("softmax", &[self])?;
        let x = as_rows("softmax", self)?;
        let out = Tensor::empty(x.shape(), x.dtype(), x.device())?;
        x.device().backend().softmax(&out, &x)?;
        out.mark_written();
        out.view(self.shape())
    }

    /// Gradient of [`Tensor::softmax`] for its input, given its output, this tensor.
    pub fn softmax_backward(&self, d_y: &Tensor, d_x: Destination) -> Result<()> {
        let op = "softmax_backward";
        same_kind(op, &[self, d_y, d_x.tensor])?;
        expect_shape(op, "d_y", d_y, self.shape())?;
        expect_shape(op, "d_x", d_x.tensor, self.shape())?;
        let (y, d_y) = (as_rows(op, self)?, as_rows(op, d_y)?);
        through_rows(op, d_x, |d_x| y.device().backend().softmax_backward(d_x, &d_y, &y))
    }
}
