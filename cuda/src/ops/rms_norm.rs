//! `rms_norm`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::rms_norm`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(cuda: &Cuda, _out: &Tensor, _rstd: &Tensor, _x: &Tensor, _weight: &Tensor, _eps: f64) -> Result<()> {
    missing(cuda, "rms_norm")
}

/// See [`Backend::rms_norm_backward`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(cuda: &Cuda, _d_x: Option<Destination>, _d_weight: Option<Destination>, _d_out: &Tensor, _x: &Tensor, _weight: &Tensor, _rstd: &Tensor) -> Result<()> {
    missing(cuda, "rms_norm_backward")
}
