//! `out = op(x)` over any strides. Bytes: one read and one write of every element. FLOPs: 1 (arithmetic) to 20 (tanh) an element.

use patchgpt_tensor::{DType, Result, Tensor, Unary};

use super::rows::{ELEMENTWISE, elementwise_blocks, floating, packed, specialisations as of_rows};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};

static SOURCE: KernelSource = kernel_source!("unary", "rows.cuh", "strided.cuh");

pub(crate) fn specialisations() -> Vec<Specialisation> {
    of_rows(&SOURCE)
}

/// See [`Backend::unary`](patchgpt_tensor::Backend::unary).
pub(crate) fn unary(cuda: &Cuda, out: &Tensor, op: Unary, x: &Tensor) -> Result<()> {
    floating("unary", x.dtype())?;
    let (mul, add) = match op {
        Unary::Affine { mul, add } => (rounded(mul, x.dtype()), rounded(add, x.dtype())),
        _ => (0.0, 0.0),
    };
    let (walk, pack) = packed(cuda, [out, x])?;
    cuda.kernel(&SOURCE, "unary")
        .define("X", x.dtype())
        .define("PACK", pack)
        .write(out)
        .read(x)
        .value(walk)
        .value(function(op))
        .value(mul)
        .value(add)
        .blocks(elementwise_blocks(walk.count as usize))
        .threads(ELEMENTWISE)
        .launch()
}

/// The function's number in the kernel.
fn function(op: Unary) -> i32 {
    match op {
        Unary::Neg => 0,
        Unary::Exp => 1,
        Unary::Log => 2,
        Unary::Sqrt => 3,
        Unary::Tanh => 4,
        Unary::Sigmoid => 5,
        Unary::Square => 6,
        Unary::Recip => 7,
        Unary::Affine { .. } => 8,
    }
}

fn rounded(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => half::bf16::from_f64(x).to_f64(),
        DType::F32 => f64::from(x as f32),
        _ => x,
    }
}
