//! SwiGLU over a joined gate and up projection.

use super::{as_rows, expect_shape, same_kind, through_rows, width};
use crate::{Destination, Error, Result, Tensor};

fn half(op: &'static str, x: &Tensor) -> Result<Vec<usize>> {
    let double = width(op, x)?;
    if double % 2 != 0 {
        return Err(Error::shape(
            op,
            format!("the last dimension holds gate and up and must be even, got {:?}", x.shape()),
        ));
    }
    let mut shape = x.shape().to_vec();
    shape[x.rank() - 1] = double / 2;
    Ok(shape)
}

impl Tensor {
    /// `silu(gate) * up` with gate the first and up the second half of the last dimension: [.., 2F] to [.., F].
    pub fn swiglu(&self) -> Result<Tensor> {
        same_kind("swiglu", &[self])?;
        let shape = half("swiglu", self)?;
        let x = as_rows("swiglu", self)?;
        let out = Tensor::empty(&[x.dim(0), x.dim(1) / 2], x.dtype(), x.device())?;
        x.device().backend().swiglu(&out, &x)?;
        out.mark_written();
        out.view(&shape)
    }

    /// Gradient of [`Tensor::swiglu`] for its input, this tensor.
    pub fn swiglu_backward(&self, d_out: &Tensor, d_x: Destination) -> Result<()> {
        let op = "swiglu_backward";
        same_kind(op, &[self, d_out, d_x.tensor])?;
        expect_shape(op, "d_out", d_out, &half(op, self)?)?;
        expect_shape(op, "d_x", d_x.tensor, self.shape())?;
        let (x, d_out) = (as_rows(op, self)?, as_rows(op, d_out)?);
        through_rows(op, d_x, |d_x| x.device().backend().swiglu_backward(d_x, &d_out, &x))
    }
}
