//! SwiGLU of rows [gate | up] and its gradient. Bytes, for each element of out: forward two reads and one write, backward three reads and two writes.
//! FLOPs: about 10 forward, 20 backward.

use patchgpt_tensor::{Destination, Result, Tensor};

use super::rows::{ELEMENTWISE, Rows, elementwise_blocks, floating, pack, specialisations as of_rows};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};

static SOURCE: KernelSource = kernel_source!("swiglu", "rows.cuh");

pub(crate) fn specialisations() -> Vec<Specialisation> {
    of_rows(&SOURCE)
}

/// See [`Backend::swiglu`](patchgpt_tensor::Backend::swiglu).
pub(crate) fn forward(cuda: &Cuda, out: &Tensor, x: &Tensor) -> Result<()> {
    floating("swiglu", x.dtype())?;
    let (to, from) = (Rows::of("swiglu", out)?, Rows::of("swiglu", x)?);
    let pack = pack(cuda, x.dtype(), to.width, &[out, x])?;
    let packs = to.width / pack;
    cuda.kernel(&SOURCE, "swiglu")
        .define("X", x.dtype())
        .define("PACK", pack)
        .write(out)
        .value(to.stride as i64)
        .read(x)
        .value(from.stride as i64)
        .value(to.count as i64)
        .value(packs as i64)
        .blocks(elementwise_blocks(to.count * packs))
        .threads(ELEMENTWISE)
        .launch()
}

/// See [`Backend::swiglu_backward`](patchgpt_tensor::Backend::swiglu_backward).
pub(crate) fn backward(cuda: &Cuda, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()> {
    let op = "swiglu_backward";
    floating(op, x.dtype())?;
    let (to, gradient, from) = (Rows::of(op, d_x.tensor)?, Rows::of(op, d_out)?, Rows::of(op, x)?);
    let pack = pack(cuda, x.dtype(), gradient.width, &[d_x.tensor, d_out, x])?;
    let packs = gradient.width / pack;
    cuda.kernel(&SOURCE, "swiglu_backward")
        .define("X", x.dtype())
        .define("PACK", pack)
        .write(d_x.tensor)
        .value(to.stride as i64)
        .value(i32::from(d_x.accumulate))
        .read(d_out)
        .value(gradient.stride as i64)
        .read(x)
        .value(from.stride as i64)
        .value(gradient.count as i64)
        .value(packs as i64)
        .blocks(elementwise_blocks(gradient.count * packs))
        .threads(ELEMENTWISE)
        .launch()
}
