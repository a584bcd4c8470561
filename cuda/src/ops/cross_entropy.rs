//! `cross_entropy`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::cross_entropy`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(cuda: &Cuda, _losses: &Tensor, _lse: &Tensor, _logits: &Tensor, _targets: &Tensor, _weights: &Tensor) -> Result<()> {
    missing(cuda, "cross_entropy")
}

/// See [`Backend::cross_entropy_backward`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(cuda: &Cuda, _d_logits: Destination, _d_losses: &Tensor, _logits: &Tensor, _lse: &Tensor, _targets: &Tensor, _weights: &Tensor) -> Result<()> {
    missing(cuda, "cross_entropy_backward")
}
