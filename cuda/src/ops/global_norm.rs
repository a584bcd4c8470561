//! `global_norm`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::global_norm`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn global_norm(cuda: &Cuda, _norm: &Tensor, _clip: &Tensor, _x: &Tensor, _max_norm: f64) -> Result<()> {
    missing(cuda, "global_norm")
}
