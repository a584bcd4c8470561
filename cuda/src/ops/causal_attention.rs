//! `causal_attention`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::causal_attention`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(cuda: &Cuda, _out: &Tensor, _lse: &Tensor, _q: &Tensor, _k: &Tensor, _v: &Tensor, _scale: f64) -> Result<()> {
    missing(cuda, "causal_attention")
}

/// See [`Backend::causal_attention_backward`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(cuda: &Cuda, _d_q: Destination, _d_k: Destination, _d_v: Destination, _d_out: &Tensor, _q: &Tensor, _k: &Tensor, _v: &Tensor, _out: &Tensor, _lse: &Tensor, _scale: f64) -> Result<()> {
    missing(cuda, "causal_attention_backward")
}
