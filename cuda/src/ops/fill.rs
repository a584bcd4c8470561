//! `fill`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::fill`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn fill(cuda: &Cuda, _out: &Tensor, _value: f64) -> Result<()> {
    missing(cuda, "fill")
}
