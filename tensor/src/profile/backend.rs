//! The profiler as a backend: every primitive forwarded, named as in the contract, with its work.
//!
//! Operations per element: softmax 4 (difference, exponential, sum, quotient), its backward 4; RMSNorm 4 and 9, LayerNorm 7 and
//! 13 (one per multiplication, addition and sum of the formula); GELU 10 and 18; SwiGLU 5 and 10 per output; cross-entropy 4 a logit
//! and pass; AdamW 16 a parameter. All of these are bound by memory; what decides the arithmetic are the products.

use super::Profiler;
use super::work::{Work, count, scores};
use crate::backend::{
    AdamW, Backend, Binary, Destination, Distribution, Linear, LinearCrossEntropy, Reduction, Residual, Unary,
};
use crate::{DType, Limits, Memory, Result, ScatterIndex, Tensor};

impl Backend for Profiler {
    fn name(&self) -> String {
        self.measured.backend().name()
    }

    fn allocate(&self, bytes: usize) -> Result<Box<dyn Memory>> {
        self.measured.backend().allocate(bytes)
    }

    fn synchronize(&self) -> Result<()> {
        self.measured.backend().synchronize()
    }

    fn limits(&self, dtype: DType) -> Option<Limits> {
        self.measured.backend().limits(dtype)
    }

    fn memory_peak(&self) -> Option<usize> {
        self.measured.backend().memory_peak()
    }

    fn upload(&self, out: &Tensor, bytes: &[u8]) -> Result<()> {
        self.call("upload", || Work::of(0.0).fills(&[out]), |on| on.upload(out, bytes))
    }

    fn download(&self, x: &Tensor, bytes: &mut [u8]) -> Result<()> {
        self.call("download", || Work::of(0.0).reads(&[x]), |on| on.download(x, bytes))
    }

    fn fill(&self, out: &Tensor, value: f64) -> Result<()> {
        self.call("fill", || Work::of(0.0).fills(&[out]), |on| on.fill(out, value))
    }

    fn copy(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        self.call("copy", || Work::of(0.0).fills(&[out]).reads(&[x]), |on| on.copy(out, x))
    }

    fn random(&self, out: &Tensor, distribution: Distribution, seed: u64, offset: u64) -> Result<()> {
        self.call("random", || Work::of(0.0).fills(&[out]), |on| on.random(out, distribution, seed, offset))
    }

    fn unary(&self, out: &Tensor, op: Unary, x: &Tensor) -> Result<()> {
        self.call("unary", || Work::of(count(out)).fills(&[out]).reads(&[x]), |on| on.unary(out, op, x))
    }

    fn binary(&self, out: Destination, op: Binary, a: &Tensor, b: &Tensor) -> Result<()> {
        let work = || Work::of(count(out.tensor)).writes([out]).reads(&[a, b]);
        self.call("binary", work, |on| on.binary(out, op, a, b))
    }

    fn reduce(&self, out: Destination, op: Reduction, x: &Tensor) -> Result<()> {
        self.call("reduce", || Work::of(count(x)).writes([out]).reads(&[x]), |on| on.reduce(out, op, x))
    }

    fn matmul(&self, out: Destination, a: &Tensor, b: &Tensor, alpha: f64) -> Result<()> {
        let work = || {
            let k = a.shape().last().copied().unwrap_or(1) as f64;
            Work::of(2.0 * k * count(out.tensor)).writes([out]).reads(&[a, b])
        };
        self.call("matmul", work, |on| on.matmul(out, a, b, alpha))
    }

    fn linear(&self, args: Linear) -> Result<()> {
        let work = || {
            let Linear { out, activated, x, weight, bias } = args;
            let (sum, gelu) = (2 * x.dim(1) + usize::from(bias.is_some()), 10 * usize::from(activated.is_some()));
            let outputs: Vec<&Tensor> = [Some(out), activated].into_iter().flatten().collect();
            let inputs: Vec<&Tensor> = [Some(x), Some(weight), bias].into_iter().flatten().collect();
            Work::of((sum + gelu) as f64 * count(out)).fills(&outputs).reads(&inputs)
        };
        self.call("linear", work, |on| on.linear(args))
    }

    fn softmax(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        self.call("softmax", || Work::of(4.0 * count(x)).fills(&[out]).reads(&[x]), |on| on.softmax(out, x))
    }

    fn softmax_backward(&self, d_x: Destination, d_y: &Tensor, y: &Tensor) -> Result<()> {
        let work = || Work::of(4.0 * count(y)).writes([d_x]).reads(&[d_y, y]);
        self.call("softmax_backward", work, |on| on.softmax_backward(d_x, d_y, y))
    }

    fn patch_embedding(&self, out: &Tensor, table: &Tensor, ids: &Tensor) -> Result<()> {
        let work = || {
            let read = count(ids) * table.dim(1) as f64;
            Work::of(read).fills(&[out]).reads(&[ids]).reads_part(table, read * table.dtype().size() as f64)
        };
        self.call("patch_embedding", work, |on| on.patch_embedding(out, table, ids))
    }

    fn patch_embedding_backward(
        &self,
        d_table: Destination,
        d_out: &Tensor,
        index: &ScatterIndex,
        patch: usize,
    ) -> Result<()> {
        let work = || {
            let work = Work::of(count(d_out) * patch as f64).reads(&[d_out, index.order(), index.offsets()]);
            if !d_table.accumulate {
                return work.writes([d_table]);
            }
            // Rows of ids that do not occur are neither read nor written; at most so many do.
            let rows = index.positions().min(index.vocabulary()) as f64;
            let row_bytes = (d_out.dim(1) * d_out.dtype().size()) as f64;
            work.reads_part(d_table.tensor, 2.0 * rows * row_bytes)
        };
        self.call("patch_embedding_backward", work, |on| on.patch_embedding_backward(d_table, d_out, index, patch))
    }

    fn rms_norm(
        &self,
        out: &Tensor,
        rstd: &Tensor,
        x: &Tensor,
        residual: Option<Residual>,
        weight: &Tensor,
        eps: f64,
    ) -> Result<()> {
        let work = || Work::of(4.0 * count(x)).fills(&[out, rstd]).reads(&[x, weight]).adds(residual);
        self.call("rms_norm", work, |on| on.rms_norm(out, rstd, x, residual, weight, eps))
    }

    fn rms_norm_backward(
        &self,
        d_x: Option<Destination>,
        d_weight: Option<Destination>,
        d_out: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        rstd: &Tensor,
    ) -> Result<()> {
        let work = || Work::of(9.0 * count(x)).writes([d_x, d_weight]).reads(&[d_out, x, weight, rstd]);
        self.call("rms_norm_backward", work, |on| on.rms_norm_backward(d_x, d_weight, d_out, x, weight, rstd))
    }

    fn layer_norm(
        &self,
        out: &Tensor,
        mean: &Tensor,
        rstd: &Tensor,
        x: &Tensor,
        residual: Option<Residual>,
        weight: &Tensor,
        bias: &Tensor,
        eps: f64,
    ) -> Result<()> {
        let work = || Work::of(7.0 * count(x)).fills(&[out, mean, rstd]).reads(&[x, weight, bias]).adds(residual);
        self.call("layer_norm", work, |on| on.layer_norm(out, mean, rstd, x, residual, weight, bias, eps))
    }

    fn layer_norm_backward(
        &self,
        d_x: Option<Destination>,
        d_weight: Option<Destination>,
        d_bias: Option<Destination>,
        d_out: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        mean: &Tensor,
        rstd: &Tensor,
    ) -> Result<()> {
        let work = || Work::of(13.0 * count(x)).writes([d_x, d_weight, d_bias]).reads(&[d_out, x, weight, mean, rstd]);
        let run = |on: &dyn Backend| on.layer_norm_backward(d_x, d_weight, d_bias, d_out, x, weight, mean, rstd);
        self.call("layer_norm_backward", work, run)
    }

    fn rope(&self, out: &Tensor, x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) -> Result<()> {
        let work = || Work::of(3.0 * count(x)).fills(&[out]).reads(&[x, cos, sin]);
        self.call("rope", work, |on| on.rope(out, x, cos, sin, inverse))
    }

    fn causal_attention(
        &self,
        out: &Tensor,
        lse: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        scale: f64,
    ) -> Result<()> {
        // Two products over the scores.
        let work = || Work::of(4.0 * scores(q, k)).fills(&[out, lse]).reads(&[q, k, v]);
        self.call("causal_attention", work, |on| on.causal_attention(out, lse, q, k, v, scale))
    }

    fn causal_attention_backward(
        &self,
        d_q: Destination,
        d_k: Destination,
        d_v: Destination,
        d_out: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        lse: &Tensor,
        scale: f64,
    ) -> Result<()> {
        // Five products over the scores, that of the forward pass done again among them.
        let work = || Work::of(10.0 * scores(q, k)).writes([d_q, d_k, d_v]).reads(&[d_out, q, k, v, out, lse]);
        let run = |on: &dyn Backend| on.causal_attention_backward(d_q, d_k, d_v, d_out, q, k, v, out, lse, scale);
        self.call("causal_attention_backward", work, run)
    }

    fn gelu(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        self.call("gelu", || Work::of(10.0 * count(x)).fills(&[out]).reads(&[x]), |on| on.gelu(out, x))
    }

    fn gelu_backward(&self, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()> {
        let work = || Work::of(18.0 * count(x)).writes([d_x]).reads(&[d_out, x]);
        self.call("gelu_backward", work, |on| on.gelu_backward(d_x, d_out, x))
    }

    fn swiglu(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        self.call("swiglu", || Work::of(5.0 * count(out)).fills(&[out]).reads(&[x]), |on| on.swiglu(out, x))
    }

    fn swiglu_backward(&self, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()> {
        let work = || Work::of(10.0 * count(d_out)).writes([d_x]).reads(&[d_out, x]);
        self.call("swiglu_backward", work, |on| on.swiglu_backward(d_x, d_out, x))
    }

    fn cross_entropy(
        &self,
        losses: &Tensor,
        lse: &Tensor,
        logits: &Tensor,
        targets: &Tensor,
        weights: &Tensor,
    ) -> Result<()> {
        let work = || Work::of(4.0 * count(logits)).fills(&[losses, lse]).reads(&[logits, targets, weights]);
        self.call("cross_entropy", work, |on| on.cross_entropy(losses, lse, logits, targets, weights))
    }

    fn cross_entropy_backward(
        &self,
        d_logits: Destination,
        d_losses: &Tensor,
        logits: &Tensor,
        lse: &Tensor,
        targets: &Tensor,
        weights: &Tensor,
    ) -> Result<()> {
        let work =
            || Work::of(4.0 * count(logits)).writes([d_logits]).reads(&[d_losses, logits, lse, targets, weights]);
        let run = |on: &dyn Backend| on.cross_entropy_backward(d_logits, d_losses, logits, lse, targets, weights);
        self.call("cross_entropy_backward", work, run)
    }

    fn linear_cross_entropy(&self, args: LinearCrossEntropy) -> Result<()> {
        let work = || {
            let products = 1 + usize::from(args.d_x.is_some()) + usize::from(args.d_weight.is_some());
            let passes = if products > 1 { 2.0 } else { 1.0 };
            let logits = (args.x.dim(0) * args.weight.dim(0)) as f64;
            let flops = logits * (2.0 * (products * args.x.dim(1)) as f64 + 4.0 * passes);
            let reads = [args.x, args.weight, args.targets, args.target_weights, args.scale];
            Work::of(flops).writes([args.d_x, args.d_weight]).fills(&[args.losses]).reads(&reads)
        };
        self.call("linear_cross_entropy", work, |on| on.linear_cross_entropy(args))
    }

    fn adamw(&self, args: AdamW) -> Result<()> {
        let work = || {
            let scalars = [args.gradients, args.learning_rate, args.clip, args.step];
            let updated = [args.parameters, args.first_moment, args.second_moment];
            let work = Work::of(16.0 * count(args.parameters)).updates(&updated).reads(&scalars);
            args.rounded.iter().fold(work, |work, copy| work.fills(&[copy.tensor]))
        };
        self.call("adamw", work, |on| on.adamw(args))
    }

    fn global_norm(&self, norm: &Tensor, clip: &Tensor, x: &Tensor, max_norm: f64) -> Result<()> {
        let work = || Work::of(2.0 * count(x)).fills(&[norm, clip]).reads(&[x]);
        self.call("global_norm", work, |on| on.global_norm(norm, clip, x, max_norm))
    }
}
