//! `adamw`: not on this device yet.

use patchgpt_tensor::*;

use crate::device::Cuda;
use crate::ops::missing;

/// See [`Backend::adamw`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn adamw(cuda: &Cuda, _args: AdamW) -> Result<()> {
    missing(cuda, "adamw")
}
