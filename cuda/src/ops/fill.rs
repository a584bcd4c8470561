//! `out = value` over any strides. Bytes: one write of every element.

use half::{bf16, f16};
use patchgpt_tensor::{DType, Result, Tensor};

use super::rows::{ELEMENTWISE, elementwise_blocks, full_pack, packed};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};

static SOURCE: KernelSource = kernel_source!("fill", "strided.cuh");

pub(crate) fn specialisations() -> Vec<Specialisation> {
    [DType::BF16, DType::F32, DType::F64]
        .into_iter()
        .flat_map(|x| [full_pack(x), 1].map(|pack| (x, pack)))
        .map(|(x, pack)| Specialisation::new(&SOURCE).define("X", word(x)).define("PACK", pack))
        .collect()
}

/// See [`Backend::fill`](patchgpt_tensor::Backend::fill).
pub(crate) fn fill(cuda: &Cuda, out: &Tensor, value: f64) -> Result<()> {
    let bits = match out.dtype() {
        DType::F64 => value.to_bits(),
        DType::F32 => u64::from((value as f32).to_bits()),
        DType::F16 => u64::from(f16::from_f64(value).to_bits()),
        DType::BF16 => u64::from(bf16::from_f64(value).to_bits()),
        DType::I32 => u64::from(value as i32 as u32),
        DType::I64 => value as i64 as u64,
    };
    let (walk, pack) = packed(cuda, [out])?;
    cuda.kernel(&SOURCE, "fill")
        .define("X", word(out.dtype()))
        .define("PACK", pack)
        .write(out)
        .value(walk)
        .value(bits)
        .blocks(elementwise_blocks(walk.count as usize))
        .threads(ELEMENTWISE)
        .launch()
}

/// The unsigned integer as which elements move unchanged.
pub(super) fn word(dtype: DType) -> &'static str {
    match dtype.size() {
        2 => "u16",
        4 => "u32",
        _ => "u64",
    }
}
