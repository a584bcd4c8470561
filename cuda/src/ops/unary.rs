//! `unary`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::unary`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn unary(cuda: &Cuda, _out: &Tensor, _op: Unary, _x: &Tensor) -> Result<()> {
    missing(cuda, "unary")
}
