//! `out (+)= op(a, b)` over any strides. Bytes: one read of each argument's elements, one write of every element (and a read of it, to
//! accumulate). FLOPs: 1 an element.

use patchgpt_tensor::{Binary, Destination, Result, Tensor};

use super::rows::{ELEMENTWISE, elementwise_blocks, floating, packed, specialisations as of_rows};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};

static SOURCE: KernelSource = kernel_source!("binary", "rows.cuh", "strided.cuh");

pub(crate) fn specialisations() -> Vec<Specialisation> {
    of_rows(&SOURCE)
}

/// See [`Backend::binary`](patchgpt_tensor::Backend::binary).
pub(crate) fn binary(cuda: &Cuda, out: Destination, op: Binary, a: &Tensor, b: &Tensor) -> Result<()> {
    floating("binary", a.dtype())?;
    let (walk, pack) = packed(cuda, [out.tensor, a, b])?;
    cuda.kernel(&SOURCE, "binary")
        .define("X", a.dtype())
        .define("PACK", pack)
        .write(out.tensor)
        .read(a)
        .read(b)
        .value(walk)
        .value(op as i32)
        .value(i32::from(out.accumulate))
        .blocks(elementwise_blocks(walk.count as usize))
        .threads(ELEMENTWISE)
        .launch()
}

// The kernel numbers its functions in the order of the contract.
const _: () = assert!(Binary::Add as i32 == 0 && Binary::Div as i32 == 3 && Binary::Min as i32 == 5);
