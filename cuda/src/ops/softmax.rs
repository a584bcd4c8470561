//! `softmax`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::softmax`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(cuda: &Cuda, _out: &Tensor, _x: &Tensor) -> Result<()> {
    missing(cuda, "softmax")
}

/// See [`Backend::softmax_backward`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(cuda: &Cuda, _d_x: Destination, _d_y: &Tensor, _y: &Tensor) -> Result<()> {
    missing(cuda, "softmax_backward")
}
