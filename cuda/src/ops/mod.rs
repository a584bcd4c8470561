//! The launchers, one file an op: each picks a specialisation and a grid, passes the arguments and states the kernel's bytes and FLOPs.
//!
//! A launcher is a free function of the device and the arguments of the [`Backend`](patchgpt_tensor::Backend) method that it serves; arguments have been
//! checked by the tensor crate as that trait says.

pub(crate) mod adamw;
pub(crate) mod binary;
pub(crate) mod causal_attention;
mod composed;
pub(crate) mod copy;
pub(crate) mod cross_entropy;
pub(crate) mod fill;
pub(crate) mod gelu;
pub(crate) mod gemm;
pub(crate) mod global_norm;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod linear_cross_entropy;
pub(crate) mod matmul;
pub(crate) mod patch_embedding;
pub(crate) mod random;
pub(crate) mod reduce;
pub(crate) mod rms_norm;
pub(crate) mod rope;
mod rows;
pub(crate) mod softmax;
pub(crate) mod swiglu;
pub(crate) mod unary;

use crate::launch::Specialisation;

/// Every specialisation that the tests and the benches use, for builds ahead of a run and for the table of registers and shared memory.
pub fn specialisations() -> Vec<Specialisation> {
    [
        adamw::specialisations(),
        binary::specialisations(),
        causal_attention::specialisations(),
        copy::specialisations(),
        cross_entropy::specialisations(),
        fill::specialisations(),
        gelu::specialisations(),
        global_norm::specialisations(),
        layer_norm::specialisations(),
        patch_embedding::specialisations(),
        random::specialisations(),
        reduce::specialisations(),
        rms_norm::specialisations(),
        rope::specialisations(),
        softmax::specialisations(),
        swiglu::specialisations(),
        unary::specialisations(),
    ]
    .concat()
}
