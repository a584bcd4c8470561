//! Linear layers: a product with the transposed weight, a bias, and GELU of the sum.

use super::{expect_shape, same_kind};
use crate::backend::{Backend, Linear};
use crate::{Destination, Error, Result, Tensor};

impl Tensor {
    /// `x weight^T + bias` over the last dimension: x is this tensor [.., I], weight [O, I], bias `[O]`, result [.., O].
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not fit.
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let (x, shape) = rows(self, weight, bias)?;
        let out = Tensor::empty(&[x.dim(0), weight.dim(0)], x.dtype(), x.device())?;
        x.device().backend().linear(Linear { out: &out, activated: None, x: &x, weight, bias })?;
        out.mark_written();
        out.view(&shape)
    }

    /// What [`Tensor::linear`] gives, and GELU of it, by one call of the device.
    ///
    /// # Errors
    /// As [`Tensor::linear`].
    pub fn linear_gelu(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let (x, shape) = rows(self, weight, bias)?;
        let empty = || Tensor::empty(&[x.dim(0), weight.dim(0)], x.dtype(), x.device());
        let (out, activated) = (empty()?, empty()?);
        x.device().backend().linear(Linear { out: &out, activated: Some(&activated), x: &x, weight, bias })?;
        out.mark_written();
        activated.mark_written();
        Ok((out.view(&shape)?, activated.view(&shape)?))
    }
}

/// x as [N, I], and the shape of the output, [.., O].
fn rows(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<(Tensor, Vec<usize>)> {
    let op = "linear";
    same_kind(op, &[Some(x), Some(weight), bias].into_iter().flatten().collect::<Vec<_>>())?;
    let &[o, i] = weight.shape() else {
        return Err(Error::shape(op, format!("a weight [O, I] expected, got {:?}", weight.shape())));
    };
    let Some((&width, leading)) = x.shape().split_last().filter(|&(&width, _)| width == i) else {
        return Err(Error::shape(
            op,
            format!("x [.., {i}] expected for the weight {:?}, got {:?}", weight.shape(), x.shape()),
        ));
    };
    if let Some(bias) = bias {
        expect_shape(op, "the bias", bias, &[o])?;
    }
    let flat = x.reshape(&[leading.iter().product(), width])?;
    Ok((flat, [leading, &[o]].concat()))
}

/// The default body of [`Backend::linear`], for devices that do not take a problem in one piece: the bias in every row, the product added to it,
/// GELU of what that gives.
///
/// # Errors
/// Those of the primitives it calls.
pub fn linear_by_parts<B: Backend + ?Sized>(backend: &B, args: Linear) -> Result<()> {
    let Linear { out, activated, x, weight, bias } = args;
    if let Some(bias) = bias {
        backend.copy(out, &bias.broadcast_to(out.shape())?)?;
    }
    backend.matmul(Destination { tensor: out, accumulate: bias.is_some() }, x, &weight.t()?, 1.0)?;
    match activated {
        Some(activated) => backend.gelu(activated, out),
        None => Ok(()),
    }
}
