//! `rope`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::rope`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn rope(cuda: &Cuda, _out: &Tensor, _x: &Tensor, _cos: &Tensor, _sin: &Tensor, _inverse: bool) -> Result<()> {
    missing(cuda, "rope")
}
