//! The contract, each method forwarded to the launcher of its name.

use patchgpt_tensor::{
    AdamW, Backend, Binary, DType, Destination, Distribution, Limits, Linear, LinearCrossEntropy, Memory, Reduction,
    Replay, Residual, Result, ScatterIndex, Tensor, Unary,
};

use crate::device::Cuda;
use crate::limits;
use crate::ops;

impl Backend for Cuda {
    fn name(&self) -> String {
        format!("{self} ({})", self.info().name)
    }

    fn allocate(&self, bytes: usize) -> Result<Box<dyn Memory>> {
        Ok(Box::new(self.context().allocate(bytes)?))
    }

    fn upload(&self, out: &Tensor, bytes: &[u8]) -> Result<()> {
        self.upload(self.address(out)?, bytes)
    }

    fn download(&self, x: &Tensor, bytes: &mut [u8]) -> Result<()> {
        self.download(self.address(x)?, bytes)
    }

    fn limits(&self, dtype: DType) -> Option<Limits> {
        // The emulator's rates say nothing of a card; a card too small for the measurement has none.
        let measured = || limits::limits(self, dtype, limits::SIZE, limits::COPIED).ok();
        if self.is_emulated() { None } else { measured() }
    }

    fn memory_peak(&self) -> Option<usize> {
        Some(Cuda::memory_peak(self))
    }

    fn synchronize(&self) -> Result<()> {
        self.context().synchronize()
    }

    fn rehearse(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Option<usize>> {
        self.context().rehearse(body).map(Some)
    }

    fn capture(&self, memory: usize, body: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Replay>> {
        Ok(Box::new(self.context().capture(memory, body)?))
    }

    fn fill(&self, out: &Tensor, value: f64) -> Result<()> {
        ops::fill::fill(self, out, value)
    }

    fn copy(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        ops::copy::copy(self, out, x)
    }

    fn random(&self, out: &Tensor, distribution: Distribution, seed: u64, offset: u64) -> Result<()> {
        ops::random::random(self, out, distribution, seed, offset)
    }

    fn unary(&self, out: &Tensor, op: Unary, x: &Tensor) -> Result<()> {
        ops::unary::unary(self, out, op, x)
    }

    fn binary(&self, out: Destination, op: Binary, a: &Tensor, b: &Tensor) -> Result<()> {
        ops::binary::binary(self, out, op, a, b)
    }

    fn reduce(&self, out: Destination, op: Reduction, x: &Tensor) -> Result<()> {
        ops::reduce::reduce(self, out, op, x)
    }

    fn matmul(&self, out: Destination, a: &Tensor, b: &Tensor, alpha: f64) -> Result<()> {
        ops::matmul::matmul(self, out, a, b, alpha)
    }

    fn linear(&self, args: Linear) -> Result<()> {
        ops::linear::linear(self, args)
    }

    fn softmax(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        ops::softmax::forward(self, out, x)
    }

    fn softmax_backward(&self, d_x: Destination, d_y: &Tensor, y: &Tensor) -> Result<()> {
        ops::softmax::backward(self, d_x, d_y, y)
    }

    fn patch_embedding(&self, out: &Tensor, table: &Tensor, ids: &Tensor) -> Result<()> {
        ops::patch_embedding::forward(self, out, table, ids)
    }

    fn patch_embedding_backward(
        &self,
        d_table: Destination,
        d_out: &Tensor,
        index: &ScatterIndex,
        patch: usize,
    ) -> Result<()> {
        ops::patch_embedding::backward(self, d_table, d_out, index, patch)
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
        ops::rms_norm::forward(self, &ops::rms_norm::Forward { out, rstd, x, residual, weight, eps })
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
        let args = ops::rms_norm::Backward { d_x, d_weight, d_out, x, weight, rstd };
        ops::rms_norm::backward(self, &args)
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
        let args = ops::layer_norm::Forward { out, mean, rstd, x, residual, weight, bias, eps };
        ops::layer_norm::forward(self, &args)
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
        let args = ops::layer_norm::Backward { d_x, d_weight, d_bias, d_out, x, weight, mean, rstd };
        ops::layer_norm::backward(self, &args)
    }

    fn rope(&self, out: &Tensor, x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) -> Result<()> {
        ops::rope::rope(self, out, x, cos, sin, inverse)
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
        ops::causal_attention::forward(self, out, lse, q, k, v, scale)
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
        ops::causal_attention::backward(self, d_q, d_k, d_v, d_out, q, k, v, out, lse, scale)
    }

    fn gelu(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        ops::gelu::forward(self, out, x)
    }

    fn gelu_backward(&self, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()> {
        ops::gelu::backward(self, d_x, d_out, x)
    }

    fn swiglu(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        ops::swiglu::forward(self, out, x)
    }

    fn swiglu_backward(&self, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()> {
        ops::swiglu::backward(self, d_x, d_out, x)
    }

    fn cross_entropy(
        &self,
        losses: &Tensor,
        lse: &Tensor,
        logits: &Tensor,
        targets: &Tensor,
        weights: &Tensor,
    ) -> Result<()> {
        ops::cross_entropy::forward(self, losses, lse, logits, targets, weights)
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
        ops::cross_entropy::backward(self, d_logits, d_losses, logits, lse, targets, weights)
    }

    fn linear_cross_entropy(&self, args: LinearCrossEntropy) -> Result<()> {
        ops::linear_cross_entropy::linear_cross_entropy(self, args)
    }

    fn adamw(&self, args: AdamW) -> Result<()> {
        ops::adamw::adamw(self, &args)
    }

    fn global_norm(&self, norm: &Tensor, clip: &Tensor, x: &Tensor, max_norm: f64) -> Result<()> {
        ops::global_norm::global_norm(self, norm, clip, x, max_norm)
    }
}
