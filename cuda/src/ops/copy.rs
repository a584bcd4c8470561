//! `copy`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::copy`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn copy(cuda: &Cuda, _out: &Tensor, _x: &Tensor) -> Result<()> {
    missing(cuda, "copy")
}
