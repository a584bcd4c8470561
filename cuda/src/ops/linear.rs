//! `out = x weight^T + bias` and, if it is wanted, `activated = gelu(out)`: one product over cuBLASLt that adds the bias, and in the variant `lt_gelu` (gemm.rs)
//! applies GELU, before it rounds; by parts where the library does not take the problem.
//!
//! FLOPs: 2 N I O. Elements moved, each once: N I + I O + N O + O for the product with its bias; by parts the bias is written to all of out first, and read
//! with it: 2 N O more. GELU by its own kernel reads N O and writes N O; within the product it writes N O, so N O less.

use patchgpt_tensor::{DType, Destination, Linear, Result, linear_by_parts};

use super::{gelu, gemm, matmul};
use crate::blas_lt::Epilogue;
use crate::device::Cuda;

/// See [`Backend::linear`].
pub(crate) fn linear(cuda: &Cuda, args: Linear) -> Result<()> {
    let Linear { out, activated, x, weight, bias } = args;
    if out.is_empty() {
        return Ok(());
    }
    let fused = gemm::fused(cuda);
    if !fused.bias || x.dim(1) == 0 || !matches!(x.dtype(), DType::F32 | DType::BF16) {
        return linear_by_parts(cuda, args);
    }
    let bias = bias.map(|bias| bias.contiguous()).transpose()?;
    let address = bias.as_ref().map(|bias| cuda.address(bias)).transpose()?;
    let within = activated.filter(|_| fused.gelu);
    let epilogue = match (within, address) {
        (Some(_), bias) => Epilogue::Gelu { bias, sum: cuda.address(out)?, leading: out.dim(1) },
        (None, Some(bias)) => Epilogue::Bias(bias),
        (None, None) => Epilogue::None,
    };
    let (x, weight) = (matmul::plain(x)?, matmul::plain(&weight.t()?)?);
    let (product, _) = matmul::product(cuda, Destination::write(within.unwrap_or(out)), &x, &weight, 1.0)?;
    if !gemm::with_epilogue(cuda, &product, &epilogue)? {
        return linear_by_parts(cuda, args);
    }
    match activated {
        Some(activated) if within.is_none() => gelu::forward(cuda, activated, out),
        _ => Ok(()),
    }
}
