//! RMSNorm of rows and its gradients. Bytes: forward one read and one write of every element, two of each with a residual, backward two reads and one
//! write, and the partial rows of d_weight. FLOPs: 4 an element forward, 11 backward.

use patchgpt_tensor::{Destination, Residual, Result, Tensor};

use super::composed;
use super::reduce::sum_columns;
use super::rows::{
    NORMS, Norm, Partials, RowCache, Rows, floating, pack, row_threads, shared_bytes, specialisations as of_rows,
};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};
use crate::variants::{Family, names};

/// Arguments of [`Backend::rms_norm`](patchgpt_tensor::Backend::rms_norm).
#[derive(Clone, Copy)]
pub(crate) struct Forward<'a> {
    pub(crate) out: &'a Tensor,
    pub(crate) rstd: &'a Tensor,
    pub(crate) x: &'a Tensor,
    pub(crate) residual: Option<Residual<'a>>,
    pub(crate) weight: &'a Tensor,
    pub(crate) eps: f64,
}

/// Arguments of [`Backend::rms_norm_backward`](patchgpt_tensor::Backend::rms_norm_backward).
#[derive(Clone, Copy)]
pub(crate) struct Backward<'a> {
    pub(crate) d_x: Option<Destination<'a>>,
    pub(crate) d_weight: Option<Destination<'a>>,
    pub(crate) d_out: &'a Tensor,
    pub(crate) x: &'a Tensor,
    pub(crate) weight: &'a Tensor,
    pub(crate) rstd: &'a Tensor,
}

/// The names, for [`Cuda::with_kernel`].
pub(crate) const FAMILY: Family = Family { name: "rms_norm", variants: &names(NORMS) };

static SOURCE: KernelSource = kernel_source!("rms_norm", "rows.cuh");

pub(crate) fn specialisations() -> Vec<Specialisation> {
    of_rows(&SOURCE)
}

/// See [`Backend::rms_norm`](patchgpt_tensor::Backend::rms_norm).
pub(crate) fn forward(cuda: &Cuda, args: &Forward) -> Result<()> {
    floating("rms_norm", args.x.dtype())?;
    match *cuda.variant(&FAMILY, NORMS) {
        Norm::Swept(cache) => forward_by(cuda, args, cache),
        Norm::Composed => composed::rms_norm(cuda, args),
    }
}

/// See [`Backend::rms_norm_backward`](patchgpt_tensor::Backend::rms_norm_backward).
pub(crate) fn backward(cuda: &Cuda, args: &Backward) -> Result<()> {
    floating("rms_norm_backward", args.x.dtype())?;
    match *cuda.variant(&FAMILY, NORMS) {
        Norm::Swept(cache) => backward_by(cuda, args, cache),
        Norm::Composed => composed::rms_norm_backward(cuda, args),
    }
}

fn forward_by(cuda: &Cuda, args: &Forward, cache: RowCache) -> Result<()> {
    let &Forward { out, rstd, x, residual, weight, eps } = args;
    let op = "rms_norm";
    let (to, from) = (Rows::of(op, out)?, Rows::of(op, x)?);
    let (addend, sum) = residual.map(|r| (r.addend, r.sum)).unzip();
    let stride_of = |t: Option<&Tensor>| t.map_or(Ok(0), |t| Rows::of(op, t).map(|rows| rows.stride));
    let operands: Vec<&Tensor> = [out, x, weight].into_iter().chain(addend).chain(sum).collect();
    let pack = pack(cuda, x.dtype(), from.width, &operands)?;
    let packs = from.width / pack;
    let threads = row_threads(from.count, packs);
    let shared = cache.shared(cuda, threads.flight * from.width * x.dtype().size());
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

fn backward_by(cuda: &Cuda, args: &Backward, cache: RowCache) -> Result<()> {
    let &Backward { d_x, d_weight, d_out, x, weight, rstd } = args;
    let op = "rms_norm_backward";
    let (gradient, from) = (Rows::of(op, d_out)?, Rows::of(op, x)?);
    let to = d_x.map(|d| Rows::of(op, d.tensor)).transpose()?;
    let operands: Vec<&Tensor> = d_x.iter().map(|d| d.tensor).chain([d_out, x, weight]).collect();
    let pack = pack(cuda, x.dtype(), from.width, &operands)?;
    let packs = from.width / pack;
    let sums = Partials::new(cuda, x, from, packs, 1, cache);
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
