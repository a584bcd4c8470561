//! Rotary embedding. Bytes: one read and one write of every element, and the tables once. FLOPs: 3 an element.

use bytemuck::{Pod, Zeroable};
use patchgpt_tensor::{DType, Error, Result, Tensor};

use super::rows::{ELEMENTWISE, elementwise_blocks, floating, pack, specialisations_with};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};

static SOURCE: KernelSource = kernel_source!("rope", "rows.cuh");

pub(crate) fn specialisations() -> Vec<Specialisation> {
    specialisations_with(&SOURCE, "TABLE")
}

/// Strides of batch, position and head; `Strides` in the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Strides([i64; 3]);

/// Positions, heads and packs of half a head; `Heads` in the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Heads([i64; 3]);

// SAFETY: three i64.
unsafe impl Zeroable for Strides {}
// SAFETY: three i64, so without padding; Copy and 'static.
unsafe impl Pod for Strides {}
// SAFETY: three i64.
unsafe impl Zeroable for Heads {}
// SAFETY: three i64, so without padding; Copy and 'static.
unsafe impl Pod for Heads {}

/// See [`Backend::rope`](patchgpt_tensor::Backend::rope); the tables may also be f32 beside a bf16 x.
pub(crate) fn rope(cuda: &Cuda, out: &Tensor, x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) -> Result<()> {
    floating("rope", x.dtype())?;
    if cos.dtype() != x.dtype() && cos.dtype() != DType::F32 {
        return Err(Error::dtype("rope", format!("tables in {} or f32", x.dtype()), cos.dtype()));
    }
    let half = x.dim(3) / 2;
    let pack = pack(cuda, x.dtype(), half, &[out, x, cos, sin])?;
    let packs = half / pack;
    let strides = |t: &Tensor| Strides([0, 1, 2].map(|d| t.strides()[d] as i64));
    cuda.kernel(&SOURCE, "rope")
        .define("X", x.dtype())
        .define("PACK", pack)
        .define("TABLE", cos.dtype())
        .write(out)
        .value(strides(out))
        .read(x)
        .value(strides(x))
        .read(cos)
        .read(sin)
        .value(x.dim(0) as i64)
        .value(Heads([x.dim(1) as i64, x.dim(2) as i64, packs as i64]))
        .value(i32::from(inverse))
        .blocks(elementwise_blocks(x.dim(0) * x.dim(1) * x.dim(2) * packs))
        .threads(ELEMENTWISE)
        .launch()
}
