//! The variant `composed`: products of cuBLASLt and a softmax, with scores and probabilities in memory, as a framework without a kernel for attention
//! computes it. Memory and traffic grow with T S: what the other variants save. f32 and bf16, any head, any scale.
//!
//! Scores are summed and kept in f32; probabilities and their gradients are of the inputs' type.

use patchgpt_tensor::{Backend, DType, Destination, Result, Tensor};

use super::{Gradients, Implementation, Problem, Variant};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};
use crate::ops::rows::{full_pack, pack, row_threads, shared_bytes, shared_if_fits};

static SOFTMAX: KernelSource = kernel_source!("causal_softmax", "rows.cuh");

pub(super) const VARIANT: Variant<Implementation> = Variant {
    name: "composed",
    about: "products by NVIDIA's library and a softmax, scores in memory; f32 and bf16",
    implementation: Implementation {
        takes: |_, problem| matches!(problem.q.dtype(), DType::F32 | DType::BF16),
        forward,
        backward,
        specialisations,
    },
};

fn specialisations() -> Vec<Specialisation> {
    let packs = [full_pack(DType::F32), 1];
    let of = |x: DType| packs.map(|pack| Specialisation::new(&SOFTMAX).define("X", x).define("PACK", pack));
    [DType::F32, DType::BF16].into_iter().flat_map(of).collect()
}

/// Queries [B, G, R, T, D] of a tensor [B, T, H, D], H = G R: the R heads of a group side by side.
fn grouped(x: &Tensor, groups: usize) -> Result<Tensor> {
    let [b, t, h, d] = [0, 1, 2, 3].map(|i| x.dim(i));
    x.view(&[b, t, groups, h / groups, d])?.permute(&[0, 2, 3, 1, 4])
}

/// Keys or values [B, S, G, D] as [B, G, R, S, D], the same for every head of a group.
fn repeated(x: &Tensor, heads: usize) -> Result<Tensor> {
    let [b, s, g, d] = [0, 1, 2, 3].map(|i| x.dim(i));
    x.permute(&[0, 2, 1, 3])?.unsqueeze(2)?.broadcast_to(&[b, g, heads / g, s, d])
}

/// All queries of a group in one dimension: [B, G, R T, D], contiguous.
fn joined(cuda: &Cuda, x: &Tensor) -> Result<Tensor> {
    let [b, g, r, t, d] = [0, 1, 2, 3, 4].map(|i| x.dim(i));
    let out = Tensor::empty(x.shape(), x.dtype(), x.device())?;
    cuda.copy(&out, x)?;
    out.view(&[b, g, r * t, d])
}

/// Probabilities [B, G, R, T, S], and the log-sum-exp of their rows if there is a place for it.
fn probabilities(cuda: &Cuda, problem: &Problem, lse: Option<&Tensor>) -> Result<Tensor> {
    let Problem { q, k, scale, .. } = *problem;
    let ([b, t, h, _], [s, g]) = (problem.sizes(), problem.key_sizes());
    let shape = [b, g, h / g, t, s];
    let scores = Tensor::empty(&shape, q.dtype().accumulator(), q.device())?;
    let p = Tensor::empty(&shape, q.dtype(), q.device())?;
    cuda.matmul(Destination::write(&scores), &grouped(q, g)?, &repeated(k, h)?.t()?, scale)?;
    let rows = b * h * t;
    let pack = pack(cuda, scores.dtype(), s, &[&scores, &p])?;
    let threads = row_threads(rows, s / pack);
    let shared = shared_if_fits(cuda, threads.flight * s * scores.dtype().size());
    cuda.kernel(&SOFTMAX, "causal_softmax")
        .define("X", q.dtype())
        .define("PACK", pack)
        .write(&p)
        .write_optional(lse)
        .read(&scores)
        .value(rows as i64)
        .value((s / pack) as i64)
        .value(t as i64)
        .value(threads.threads as u32)
        .value(i32::from(shared.is_some()))
        .blocks(threads.blocks(rows))
        .threads(threads.block())
        .shared(shared_bytes(shared))
        .launch()?;
    Ok(p)
}

fn forward(cuda: &Cuda, problem: &Problem) -> Result<()> {
    let Problem { v, out, lse, .. } = *problem;
    let ([_, _, h, _], [_, g]) = (problem.sizes(), problem.key_sizes());
    let dense = Tensor::empty(lse.shape(), lse.dtype(), lse.device())?;
    let p = probabilities(cuda, problem, Some(&dense))?;
    cuda.copy(lse, &dense)?;
    cuda.matmul(Destination::write(&grouped(out, g)?), &p, &repeated(v, h)?, 1.0)
}

fn backward(cuda: &Cuda, problem: &Problem, gradients: &Gradients) -> Result<()> {
    let Problem { q, k, v, scale, .. } = *problem;
    let &Gradients { d_out, d_q, d_k, d_v } = gradients;
    let ([b, t, h, _], [s, g]) = (problem.sizes(), problem.key_sizes());
    let p = probabilities(cuda, problem, None)?;
    let d_p = Tensor::empty(p.shape(), p.dtype(), p.device())?;
    cuda.matmul(Destination::write(&d_p), &grouped(d_out, g)?, &repeated(v, h)?.t()?, 1.0)?;
    let d_scores = Tensor::empty(p.shape(), p.dtype(), p.device())?;
    let rows = |x: &Tensor| x.view(&[b * h * t, s]);
    cuda.softmax_backward(Destination::write(&rows(&d_scores)?), &rows(&d_p)?, &rows(&p)?)?;
    let d_queries = grouped(d_q.tensor, g)?;
    cuda.matmul(Destination { tensor: &d_queries, ..d_q }, &d_scores, &repeated(k, h)?, scale)?;
    // The heads of a group add up within one product.
    let by_group = |x: &Tensor| x.view(&[b, g, h / g * t, s])?.t();
    for (to, factor, other, scale) in [(d_k, &d_scores, q, scale), (d_v, &p, d_out, 1.0)] {
        let tensor = to.tensor.permute(&[0, 2, 1, 3])?;
        let other = joined(cuda, &grouped(other, g)?)?;
        cuda.matmul(Destination { tensor: &tensor, ..to }, &by_group(factor)?, &other, scale)?;
    }
    Ok(())
}
