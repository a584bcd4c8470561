//! Embedding of patches and the gradient of its table. Bytes: forward K reads and one write of each row of out; backward K reads of each row of
//! d_out, one write (and a read, to accumulate) of each row of d_table whose id occurs, and at most a sixteenth of the reads for partial rows.
//! FLOPs: one an element read.

use patchgpt_tensor::{Destination, Error, Result, ScatterIndex, Tensor};

use super::rows::{ELEMENTWISE, RowThreads, Rows, elementwise_blocks, floating, pack, specialisations_with};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};

static SOURCE: KernelSource = kernel_source!("patch_embedding", "rows.cuh");

/// Positions that the threads of a row walk, and rows of a block at most, as in the kernel.
const SEGMENT: usize = 64;
const FLIGHT: usize = 8;

pub(crate) fn specialisations() -> Vec<Specialisation> {
    specialisations_with(&SOURCE, "OUT")
}

/// See [`Backend::patch_embedding`](patchgpt_tensor::Backend::patch_embedding).
pub(crate) fn forward(cuda: &Cuda, out: &Tensor, table: &Tensor, ids: &Tensor) -> Result<()> {
    let op = "patch_embedding";
    floating(op, table.dtype())?;
    let (to, from) = (Rows::of(op, out)?, Rows::of(op, table)?);
    let pack = pack(cuda, table.dtype(), to.width, &[out, table])?;
    let packs = to.width / pack;
    cuda.kernel(&SOURCE, "patch_embedding")
        .define("X", table.dtype())
        .define("PACK", pack)
        .define("OUT", table.dtype())
        .write(out)
        .value(to.stride as i64)
        .read(table)
        .value(from.stride as i64)
        .read(ids)
        .value(to.count as i64)
        .value(packs as i64)
        .value(ids.dim(ids.rank() - 1) as i64)
        .blocks(elementwise_blocks(to.count * packs))
        .threads(ELEMENTWISE)
        .launch()
}

/// See [`Backend::patch_embedding_backward`](patchgpt_tensor::Backend::patch_embedding_backward).
pub(crate) fn backward(
    cuda: &Cuda,
    d_table: Destination,
    d_out: &Tensor,
    index: &ScatterIndex,
    patch: usize,
) -> Result<()> {
    let op = "patch_embedding_backward";
    floating(op, d_out.dtype())?;
    let table = d_table.tensor;
    let (to, from) = (Rows::of(op, table)?, Rows::of(op, d_out)?);
    let small =
        |n: usize| i32::try_from(n).map_err(|_| Error::value(op, format!("at most 2^31 - 1 positions, got {n}")));
    let (positions, vocabulary) = (small(index.positions())?, small(to.count)?);
    let pack = pack(cuda, d_out.dtype(), to.width, &[table, d_out])?;
    let packs = to.width / pack;
    let kernel = |entry: &'static str| {
        cuda.kernel(&SOURCE, entry)
            .define("X", d_out.dtype())
            .define("PACK", pack)
            .define("OUT", table.dtype())
            .write(table)
            .value(to.stride as i64)
    };
    if !d_table.accumulate {
        kernel("patch_embedding_absent")
            .read(index.offsets())
            .value(vocabulary)
            .value(packs as i64)
            .blocks(elementwise_blocks(to.count * packs))
            .threads(ELEMENTWISE)
            .launch()?;
    }
    let segments = index.positions().div_ceil(SEGMENT);
    if segments == 0 || packs == 0 {
        return Ok(());
    }
    // One pack a thread; rows wider than a block go to several.
    let threads = packs.next_multiple_of(32).min(ELEMENTWISE);
    let threads = RowThreads { threads, flight: (ELEMENTWISE / threads).clamp(1, FLIGHT.min(segments)) };
    let across = packs.div_ceil(threads.threads).min(u16::MAX as usize);
    let accumulate = i32::from(d_table.accumulate);
    let partials = Tensor::empty(&[segments, 2, to.width], d_out.dtype().accumulator(), d_out.device())?;
    kernel("patch_embedding_runs")
        .value(accumulate)
        .write(&partials)
        .read(d_out)
        .value(from.stride as i64)
        .read(index.order())
        .read(index.offsets())
        .value(positions)
        .value(vocabulary)
        .value(packs as i64)
        .value(patch as i32)
        .value(threads.threads as u32)
        .grid(threads.blocks(segments), across, 1)
        .threads(threads.block())
        .launch()?;
    kernel("patch_embedding_joins")
        .value(accumulate)
        .read(&partials)
        .read(index.offsets())
        .value(positions)
        .value(vocabulary)
        .value(packs as i64)
        .value(patch as i32)
        .value(threads.threads as u32)
        .grid(threads.blocks(segments - 1), across, 1)
        .threads(threads.block())
        .launch()
}
