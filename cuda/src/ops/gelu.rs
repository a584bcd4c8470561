//! GELU of rows and its gradient. Bytes: forward one read and one write of every element, backward two reads and one write. FLOPs: about 15 an
//! element forward, 25 backward.

use patchgpt_tensor::{Destination, Result, Tensor};

use super::rows::{ELEMENTWISE, Rows, elementwise_blocks, floating, pack, specialisations as of_rows};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};

static SOURCE: KernelSource = kernel_source!("gelu", "rows.cuh");

pub(crate) fn specialisations() -> Vec<Specialisation> {
    of_rows(&SOURCE)
}

/// See [`Backend::gelu`](patchgpt_tensor::Backend::gelu).
pub(crate) fn forward(cuda: &Cuda, out: &Tensor, x: &Tensor) -> Result<()> {
    floating("gelu", x.dtype())?;
    let [to, from] = Rows::merged("gelu", [out, x])?;
    let pack = pack(cuda, x.dtype(), from.width, &[out, x])?;
    let packs = from.width / pack;
    cuda.kernel(&SOURCE, "gelu")
        .define("X", x.dtype())
        .define("PACK", pack)
        .write(out)
        .value(to.stride as i64)
        .read(x)
        .value(from.stride as i64)
        .value(from.count as i64)
        .value(packs as i64)
        .blocks(elementwise_blocks(from.count * packs))
        .threads(ELEMENTWISE)
        .launch()
}

/// See [`Backend::gelu_backward`](patchgpt_tensor::Backend::gelu_backward).
pub(crate) fn backward(cuda: &Cuda, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()> {
    floating("gelu_backward", x.dtype())?;
    let [to, gradient, from] = Rows::merged("gelu_backward", [d_x.tensor, d_out, x])?;
    let pack = pack(cuda, x.dtype(), from.width, &[d_x.tensor, d_out, x])?;
    let packs = from.width / pack;
    cuda.kernel(&SOURCE, "gelu_backward")
        .define("X", x.dtype())
        .define("PACK", pack)
        .write(d_x.tensor)
        .value(to.stride as i64)
        .value(i32::from(d_x.accumulate))
        .read(d_out)
        .value(gradient.stride as i64)
        .read(x)
        .value(from.stride as i64)
        .value(from.count as i64)
        .value(packs as i64)
        .blocks(elementwise_blocks(from.count * packs))
        .threads(ELEMENTWISE)
        .launch()
}
