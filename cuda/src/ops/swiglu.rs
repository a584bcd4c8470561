//! `swiglu`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::swiglu`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(cuda: &Cuda, _out: &Tensor, _x: &Tensor) -> Result<()> {
    missing(cuda, "swiglu")
}

/// See [`Backend::swiglu_backward`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(cuda: &Cuda, _d_x: Destination, _d_out: &Tensor, _x: &Tensor) -> Result<()> {
    missing(cuda, "swiglu_backward")
}
