//! Random numbers equal to the CPU's. Bytes: one write of every element.

use patchgpt_tensor::{DType, Distribution, Error, Result, Tensor};

use super::rows::{ELEMENTWISE, elementwise_blocks};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};

static SOURCE: KernelSource = kernel_source!("random", "rows.cuh", "philox.cuh");

pub(crate) fn specialisations() -> Vec<Specialisation> {
    [DType::F32, DType::F64].map(|x| Specialisation::new(&SOURCE).define("X", x)).into()
}

/// See [`Backend::random`](patchgpt_tensor::Backend::random).
pub(crate) fn random(cuda: &Cuda, out: &Tensor, distribution: Distribution, seed: u64, offset: u64) -> Result<()> {
    if !matches!(out.dtype(), DType::F32 | DType::F64) {
        return Err(Error::dtype("random", "f32 or f64", out.dtype()));
    }
    let (entry, first, second) = match distribution {
        Distribution::Uniform { low, high } => ("random_uniform", low, high),
        Distribution::Normal { mean, std } => ("random_normal", mean, std),
    };
    cuda.kernel(&SOURCE, entry)
        .define("X", out.dtype())
        .write(out)
        .value(out.len() as i64)
        .value(first)
        .value(second)
        .value(seed)
        .value(offset)
        .blocks(elementwise_blocks(out.len()))
        .threads(ELEMENTWISE)
        .launch()
}
