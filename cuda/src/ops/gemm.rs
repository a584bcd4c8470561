//! Products by one of NVIDIA's libraries. cuBLASLt computes them; those that it has no algorithm for, cuBLAS does.
//!
//! FLOPs: 2 batch m n k. Bytes: each matrix once; an epilogue saves what kernels of their own would read and write (linear.rs).

use patchgpt_tensor::Result;

use crate::blas::Gemm;
use crate::blas_lt::Epilogue;
use crate::device::Cuda;
use crate::error::backend;
use crate::variants::{Family, Variant, names};

/// What is done within a product; an implementation of a linear layer. The first of the table computes unless one is chosen by name.
#[derive(Clone, Copy)]
pub(crate) struct Fused {
    /// Whether cuBLASLt computes products, and adds a bias within them.
    pub(crate) bias: bool,
    pub(crate) gelu: bool,
}

const VARIANTS: &[Variant<Fused>; 3] = &[
    Variant {
        name: "lt",
        about: "cuBLASLt: a bias is added within the product; GELU is a kernel of its own, so that it gives the same bits when it is computed again",
        implementation: Fused { bias: true, gelu: false },
    },
    Variant {
        name: "lt_gelu",
        about: "cuBLASLt: bias and GELU within the product. GELU is applied before the sum is rounded, so that in bf16 with train.recompute = \"cheap\", \
                which applies it to the rounded one, bits are others than without recomputation",
        implementation: Fused { bias: true, gelu: true },
    },
    Variant {
        name: "blas",
        about: "cuBLAS: bias and GELU by kernels of their own",
        implementation: Fused { bias: false, gelu: false },
    },
];

/// The names, for [`Cuda::with_kernel`].
pub(crate) const FAMILY: Family = Family { name: "gemm", variants: &names(VARIANTS) };

/// What the variant for a device does within a product.
pub(crate) fn fused(cuda: &Cuda) -> Fused {
    *cuda.variant(&FAMILY, VARIANTS)
}

/// Enqueues a product.
pub(crate) fn product(cuda: &Cuda, g: &Gemm) -> Result<()> {
    if fused(cuda).bias && with_epilogue(cuda, g, &Epilogue::None)? {
        return Ok(());
    }
    cuda.blas()?.gemm(g)
}

/// Enqueues a product with what follows it, by cuBLASLt; `false` if the library does not take it, and nothing was done.
///
/// # Errors
/// A product that the library does not take, where the variant was chosen by name.
pub(super) fn with_epilogue(cuda: &Cuda, g: &Gemm, epilogue: &Epilogue) -> Result<bool> {
    let taken = cuda.blas_lt()?.gemm(g, epilogue)?;
    match cuda.chosen(&FAMILY) {
        Some(name) if !taken => Err(backend(
            cuda,
            format!(
                "the chosen kernel {name} is not for the product {}: cuBLASLt has no algorithm for it. Leave the choice out to have cuBLAS \
                 compute such products",
                cuda.blas_lt()?.describe(g, epilogue)
            ),
        )),
        _ => Ok(taken),
    }
}
