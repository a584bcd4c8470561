//! `layer_norm`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::layer_norm`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(cuda: &Cuda, _out: &Tensor, _mean: &Tensor, _rstd: &Tensor, _x: &Tensor, _weight: &Tensor, _bias: &Tensor, _eps: f64) -> Result<()> {
    missing(cuda, "layer_norm")
}

/// See [`Backend::layer_norm_backward`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(cuda: &Cuda, _d_x: Option<Destination>, _d_weight: Option<Destination>, _d_bias: Option<Destination>, _d_out: &Tensor, _x: &Tensor, _weight: &Tensor, _mean: &Tensor, _rstd: &Tensor) -> Result<()> {
    missing(cuda, "layer_norm_backward")
}
