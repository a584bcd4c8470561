//! `random`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::random`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn random(cuda: &Cuda, _out: &Tensor, _distribution: Distribution, _seed: u64, _offset: u64) -> Result<()> {
    missing(cuda, "random")
}
