//! Cross-entropy against K targets, its gradient, and both in one sweep. Bytes: losses one read of the logits; gradient one read and one write; both
//! together one read and one write while a row fits in shared memory, else two reads. FLOPs: about 15 an element each.

use patchgpt_tensor::{DType, Destination, Error, Result, Tensor};

use super::rows::{self, RowCache, RowThreads, Rows, floating, pack, shared_bytes, specialisations as of_rows};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};
use crate::variants::{Family, Variant, names};

/// What the head asks for: the losses of logits, and in their place the gradient of `scale * sum(losses)`.
pub(super) struct LossInPlace<'a> {
    pub(super) losses: &'a Tensor,
    pub(super) logits: &'a Tensor,
    pub(super) scale: &'a Tensor,
    pub(super) targets: &'a Tensor,
    pub(super) weights: &'a Tensor,
}

type Implementation = fn(&Cuda, &LossInPlace) -> Result<()>;

/// The implementations; the first computes unless one is chosen by name. One row adds another.
const VARIANTS: &[Variant<Implementation>; 3] = &[
    Variant {
        name: "cached",
        about: "losses and gradient in one kernel, rows in shared memory between the sweeps where they fit",
        implementation: |cuda, args| fused(cuda, args, RowCache::Shared),
    },
    Variant {
        name: "streamed",
        about: "losses and gradient in one kernel that reads rows twice",
        implementation: |cuda, args| fused(cuda, args, RowCache::None),
    },
    Variant { name: "apart", about: "a kernel for the losses and one for the gradient", implementation: apart },
];

/// The names, for [`Cuda::with_kernel`].
pub(crate) const FAMILY: Family = Family { name: "cross_entropy", variants: &names(VARIANTS) };

static SOURCE: KernelSource = kernel_source!("cross_entropy", "rows.cuh");

pub(crate) fn specialisations() -> Vec<Specialisation> {
    of_rows(&SOURCE)
}

/// Threads of rows; each of the K targets needs one. At most 512 where K allows: two blocks of a long row then share a multiprocessor, one
/// reading while the other writes.
fn row_threads(op: &'static str, x: DType, logits: Rows, packs: usize, k: usize) -> Result<RowThreads> {
    let most = if x == DType::F64 { 512 } else { 1024 };
    if k > most {
        return Err(Error::value(op, format!("at most {most} targets a row on this device, got {k}")));
    }
    let threads = rows::row_threads(logits.count, packs);
    if threads.threads >= k {
        return Ok(threads);
    }
    Ok(RowThreads { threads: k.next_multiple_of(32), flight: 1 })
}

/// See [`Backend::cross_entropy`](patchgpt_tensor::Backend::cross_entropy).
pub(crate) fn forward(
    cuda: &Cuda,
    losses: &Tensor,
    lse: &Tensor,
    logits: &Tensor,
    targets: &Tensor,
    weights: &Tensor,
) -> Result<()> {
    let op = "cross_entropy";
    floating(op, logits.dtype())?;
    let from = Rows::of(op, logits)?;
    let pack = pack(cuda, logits.dtype(), from.width, &[logits])?;
    let (packs, k) = (from.width / pack, weights.len());
    let threads = row_threads(op, logits.dtype(), from, packs, k)?;
    cuda.kernel(&SOURCE, "cross_entropy")
        .define("X", logits.dtype())
        .define("PACK", pack)
        .write(losses)
        .value(losses.strides()[0] as i64)
        .write(lse)
        .value(lse.strides()[0] as i64)
        .read(logits)
        .value(from.stride as i64)
        .read(targets)
        .read(weights)
        .value(from.count as i64)
        .value(packs as i64)
        .value(k as i32)
        .value(threads.threads as u32)
        .blocks(threads.blocks(from.count))
        .threads(threads.block())
        .launch()
}

/// See [`Backend::cross_entropy_backward`](patchgpt_tensor::Backend::cross_entropy_backward).
pub(crate) fn backward(
    cuda: &Cuda,
    d_logits: Destination,
    d_losses: &Tensor,
    logits: &Tensor,
    lse: &Tensor,
    targets: &Tensor,
    weights: &Tensor,
) -> Result<()> {
    let op = "cross_entropy_backward";
    floating(op, logits.dtype())?;
    let (to, from) = (Rows::of(op, d_logits.tensor)?, Rows::of(op, logits)?);
    let pack = pack(cuda, logits.dtype(), from.width, &[d_logits.tensor, logits])?;
    let (packs, k) = (from.width / pack, weights.len());
    let threads = row_threads(op, logits.dtype(), from, packs, k)?;
    cuda.kernel(&SOURCE, "cross_entropy_backward")
        .define("X", logits.dtype())
        .define("PACK", pack)
        .write(d_logits.tensor)
        .value(to.stride as i64)
        .value(i32::from(d_logits.accumulate))
        .read(d_losses)
        .value(d_losses.strides()[0] as i64)
        .read(logits)
        .value(from.stride as i64)
        .read(lse)
        .value(lse.strides()[0] as i64)
        .read(targets)
        .read(weights)
        .value(from.count as i64)
        .value(packs as i64)
        .value(k as i32)
        .value(threads.threads as u32)
        .blocks(threads.blocks(from.count))
        .threads(threads.block())
        .launch()
}

/// Losses of logits, which become their gradient.
pub(super) fn loss_in_place(cuda: &Cuda, args: &LossInPlace) -> Result<()> {
    cuda.variant(&FAMILY, VARIANTS)(cuda, args)
}

fn apart(cuda: &Cuda, args: &LossInPlace) -> Result<()> {
    let &LossInPlace { losses, logits, scale, targets, weights } = args;
    let lse = Tensor::empty(losses.shape(), losses.dtype(), losses.device())?;
    forward(cuda, losses, &lse, logits, targets, weights)?;
    let d_losses = scale.broadcast_to(losses.shape())?;
    backward(cuda, Destination::write(logits), &d_losses, logits, &lse, targets, weights)
}

fn fused(cuda: &Cuda, args: &LossInPlace, cache: RowCache) -> Result<()> {
    let op = "cross_entropy";
    let &LossInPlace { losses, logits, scale, targets, weights } = args;
    floating(op, logits.dtype())?;
    let rows = Rows::of(op, logits)?;
    let pack = pack(cuda, logits.dtype(), rows.width, &[logits])?;
    let (packs, k) = (rows.width / pack, weights.len());
    let threads = row_threads(op, logits.dtype(), rows, packs, k)?;
    let shared = cache.shared(cuda, threads.flight * rows.width * logits.dtype().size());
    cuda.kernel(&SOURCE, "cross_entropy_fused")
        .define("X", logits.dtype())
        .define("PACK", pack)
        .write(losses)
        .value(losses.strides()[0] as i64)
        .write(logits)
        .value(rows.stride as i64)
        .read(scale)
        .read(targets)
        .read(weights)
        .value(rows.count as i64)
        .value(packs as i64)
        .value(k as i32)
        .value(threads.threads as u32)
        .value(i32::from(shared.is_some()))
        .blocks(threads.blocks(rows.count))
        .threads(threads.block())
        .shared(shared_bytes(shared))
        .launch()
}
