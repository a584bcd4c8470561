//! Softmax of rows and its gradient. Bytes: forward one read and one write of every element, backward two reads and one write; one more read each
//! where rows do not fit in shared memory. FLOPs: about 15 an element forward, 4 backward.

use patchgpt_tensor::{Destination, Result, Tensor};

use super::rows::{RowThreads, Rows, floating, pack, shared_bytes, shared_if_fits, specialisations as of_rows};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};

static SOURCE: KernelSource = kernel_source!("softmax", "rows.cuh");

pub(crate) fn specialisations() -> Vec<Specialisation> {
    of_rows(&SOURCE)
}

/// See [`Backend::softmax`](patchgpt_tensor::Backend::softmax).
pub(crate) fn forward(cuda: &Cuda, out: &Tensor, x: &Tensor) -> Result<()> {
    let op = "softmax";
    floating(op, x.dtype())?;
    let (to, from) = (Rows::of(op, out)?, Rows::of(op, x)?);
    let pack = pack(cuda, x.dtype(), from.width, &[out, x])?;
    let packs = from.width / pack;
    let threads = RowThreads::new(from.count, packs, 256, 512);
    let shared = shared_if_fits(cuda, threads.flight * from.width * x.dtype().size());
    cuda.kernel(&SOURCE, "softmax")
        .define("X", x.dtype())
        .define("PACK", pack)
        .write(out)
        .value(to.stride as i64)
        .read(x)
        .value(from.stride as i64)
        .value(from.count as i64)
        .value(packs as i64)
        .value(threads.threads as u32)
        .value(i32::from(shared.is_some()))
        .blocks(threads.blocks(from.count))
        .threads(threads.block())
        .shared(shared_bytes(shared))
        .launch()
}

/// See [`Backend::softmax_backward`](patchgpt_tensor::Backend::softmax_backward).
pub(crate) fn backward(cuda: &Cuda, d_x: Destination, d_y: &Tensor, y: &Tensor) -> Result<()> {
    let op = "softmax_backward";
    floating(op, y.dtype())?;
    let (to, gradient, output) = (Rows::of(op, d_x.tensor)?, Rows::of(op, d_y)?, Rows::of(op, y)?);
    let pack = pack(cuda, y.dtype(), output.width, &[d_x.tensor, d_y, y])?;
    let packs = output.width / pack;
    let threads = RowThreads::new(output.count, packs, 256, 512);
    let shared = shared_if_fits(cuda, 2 * threads.flight * output.width * y.dtype().size());
    cuda.kernel(&SOURCE, "softmax_backward")
        .define("X", y.dtype())
        .define("PACK", pack)
        .write(d_x.tensor)
        .value(to.stride as i64)
        .value(i32::from(d_x.accumulate))
        .read(d_y)
        .value(gradient.stride as i64)
        .read(y)
        .value(output.stride as i64)
        .value(output.count as i64)
        .value(packs as i64)
        .value(threads.threads as u32)
        .value(i32::from(shared.is_some()))
        .blocks(threads.blocks(output.count))
        .threads(threads.block())
        .shared(shared_bytes(shared))
        .launch()
}
