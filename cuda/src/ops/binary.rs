//! `binary`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::binary`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn binary(cuda: &Cuda, _out: Destination, _op: Binary, _a: &Tensor, _b: &Tensor) -> Result<()> {
    missing(cuda, "binary")
}
