//! The norm of a flat gradient and the factor that clips it. Bytes: one read of x. FLOPs: 2 an element.

use patchgpt_tensor::{DType, Result, Tensor};

use super::rows::{floating, full_pack, is_aligned};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};

static SOURCE: KernelSource = kernel_source!("global_norm", "rows.cuh");

/// Elements whose squares a block sums, and threads of a block.
const CHUNK: usize = 16384;
const THREADS: usize = 256;

pub(crate) fn specialisations() -> Vec<Specialisation> {
    [(DType::F32, 4), (DType::F32, 1), (DType::BF16, 8), (DType::BF16, 1)]
        .map(|(x, pack)| Specialisation::new(&SOURCE).define("X", x).define("PACK", pack).define("OUT", DType::F32))
        .into()
}

/// See [`Backend::global_norm`](patchgpt_tensor::Backend::global_norm).
pub(crate) fn global_norm(cuda: &Cuda, norm: &Tensor, clip: &Tensor, x: &Tensor, max_norm: f64) -> Result<()> {
    floating("global_norm", x.dtype())?;
    let pack = if is_aligned(cuda, x)? { full_pack(x.dtype()) } else { 1 };
    let blocks = x.len().div_ceil(CHUNK);
    let sums = Tensor::empty(&[blocks], DType::F64, x.device())?;
    let kernel = |entry: &'static str| {
        cuda.kernel(&SOURCE, entry).define("X", x.dtype()).define("PACK", pack).define("OUT", norm.dtype())
    };
    kernel("global_norm_squares")
        .write(&sums)
        .read(x)
        .value(x.len() as i64)
        .value(CHUNK as i64)
        .blocks(blocks)
        .threads(THREADS)
        .launch()?;
    kernel("global_norm")
        .write(norm)
        .write(clip)
        .read(&sums)
        .value(blocks as i64)
        .value(max_norm)
        .blocks(1)
        .threads(THREADS)
        .launch()
}
