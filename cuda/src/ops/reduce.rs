//! `reduce`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::reduce`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn reduce(cuda: &Cuda, _out: Destination, _op: Reduction, _x: &Tensor) -> Result<()> {
    missing(cuda, "reduce")
}
