//! RMSNorm of rows and its gradients. Bytes: forward one read and one write of every element, two of each with a residual, backward two reads and one
//! write, and the partial rows of d_weight. FLOPs: 4 an element forward, 11 backward.

use patchgpt_tensor::{Destination, Residual, Result, Tensor};

use super::reduce::sum_columns;
use super::rows::{
    Partials, RowThreads, Rows, floating, pack, shared_bytes, shared_if_fits, specialisations as of_rows,
};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};

static SOURCE: KernelSource = kernel_source!("rms_norm", "rows.cuh");

pub(crate) fn specialisations() -> Vec<Specialisation> {
    of_rows(&SOURCE)
}

/// See [`Backend::rms_norm`](patchgpt_tensor::Backend::rms_norm).
pub(crate) fn forward(
    cuda: &Cuda,
    out: &Tensor,
    rstd: &Tensor,
    x: &Tensor,
    residual: Option<Residual>,
    weight: &Tensor,
    eps: f64,
) -> Result<()> {
    let op = "rms_norm";
    floating(op, x.dtype())?;
    let (to, from) = (Rows::of(op, out)?, Rows::of(op, x)?);
    let (addend, sum) = residual.map(|r| (r.addend, r.sum)).unzip();
    let stride_of = |t: Option<&Tensor>| t.map_or(Ok(0), |t| Rows::of(op, t).map(|rows| rows.stride));
    let operands: Vec<&Tensor> = [out, x, weight].into_iter().chain(addend).chain(sum).collect();
    let pack = pack(cuda, x.dtype(), from.width, &operands)?;
    let packs = from.width / pack;
    let threads = RowThreads::new(from.count, packs, 256, 512);
    let shared = shared_if_fits(cuda, threads.flight * from.width * x.dtype().size());
    cuda.kernel(&SOURCE, "rms_norm")
        .define("X", x.dtype())
        .define("PACK", pack)
        .write(out)
        .value(to.stride as i64)
        .write(rstd)
        .value(rstd.strides()[0] as i64)
        .read(x)
        .value(from.stride as i64)
        .read_optional(addend)
        .value(stride_of(addend)? as i64)
        .write_optional(sum)
        .value(stride_of(sum)? as i64)
        .read(weight)
        .value(from.count as i64)
        .value(packs as i64)
        .value(eps)
        .value(threads.threads as u32)
        .value(i32::from(shared.is_some()))
        .blocks(threads.blocks(from.count))
        .threads(threads.block())
        .shared(shared_bytes(shared))
        .launch()
}

/// See [`Backend::rms_norm_backward`](patchgpt_tensor::Backend::rms_norm_backward).
pub(crate) fn backward(
    cuda: &Cuda,
    d_x: Option<Destination>,
    d_weight: Option<Destination>,
    d_out: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
) -> Result<()> {
    let op = "rms_norm_backward";
    floating(op, x.dtype())?;
    let (gradient, from) = (Rows::of(op, d_out)?, Rows::of(op, x)?);
    let to = d_x.map(|d| Rows::of(op, d.tensor)).transpose()?;
    let operands: Vec<&Tensor> = d_x.iter().map(|d| d.tensor).chain([d_out, x, weight]).collect();
    let pack = pack(cuda, x.dtype(), from.width, &operands)?;
    let packs = from.width / pack;
    let sums = Partials::new(cuda, x, from, packs, 1);
    let partial = d_weight.map(|_| sums.empty(x)).transpose()?;
    cuda.kernel(&SOURCE, "rms_norm_backward")
        .define("X", x.dtype())
        .define("PACK", pack)
        .write_optional(d_x.map(|d| d.tensor))
        .value(to.map_or(0, |to| to.stride) as i64)
        .value(i32::from(d_x.is_some_and(|d| d.accumulate)))
        .write_optional(partial.as_ref())
        .read(d_out)
        .value(gradient.stride as i64)
        .read(x)
        .value(from.stride as i64)
        .read(weight)
        .read(rstd)
        .value(rstd.strides()[0] as i64)
        .value(from.count as i64)
        .value(packs as i64)
        .value(sums.rows_per_block as i64)
        .value(sums.threads.threads as u32)
        .value(i32::from(sums.shared.is_some()))
        .blocks(sums.blocks)
        .threads(sums.threads.block())
        .shared(shared_bytes(sums.shared))
        .launch()?;
    match (d_weight, partial) {
        (Some(d), Some(partial)) => sum_columns(cuda, d, &partial),
        _ => Ok(()),
    }
}
