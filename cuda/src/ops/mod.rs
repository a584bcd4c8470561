//! The launchers, one file an op: each picks a specialisation and a grid, passes the arguments and states the kernel's bytes and FLOPs.
//!
//! A launcher is a free function of the device and the arguments of the [`Backend`](patchgpt_tensor::Backend) method of that name; arguments have been
//! checked by the tensor crate as that trait says.

pub(crate) mod matmul;

use crate::launch::Specialisation;

/// Every specialisation that the tests and the benches use, for builds ahead of a run and for the table of registers and shared memory.
pub fn specialisations() -> Vec<Specialisation> {
    // One line an op: `all.extend(rms_norm::specialisations());`
    Vec::new()
}
