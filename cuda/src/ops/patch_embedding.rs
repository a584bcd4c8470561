//! `patch_embedding`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::patch_embedding`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(cuda: &Cuda, _out: &Tensor, _table: &Tensor, _ids: &Tensor) -> Result<()> {
    missing(cuda, "patch_embedding")
}

/// See [`Backend::patch_embedding_backward`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(cuda: &Cuda, _d_table: Destination, _d_out: &Tensor, _index: &ScatterIndex, _patch: usize) -> Result<()> {
    missing(cuda, "patch_embedding_backward")
}
