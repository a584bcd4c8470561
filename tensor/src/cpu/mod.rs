//! The CPU backend: deterministic, multi-threaded kernels for f32, f64 and bf16 (computed in f32), one file per primitive.
//!
//! Work is cut into tasks by shape alone and partial sums are combined in index order, so that results do not depend on the
//! number of threads.

mod access;
mod adamw;
mod buffer;
mod causal_attention;
mod cells;
mod copy;
mod cross_entropy;
mod elementwise;
mod gelu;
mod gemm;
mod isa;
mod layer_norm;
mod linear;
mod math;
mod matmul;
mod memory;
mod norm;
mod parallel;
mod patch_embedding;
mod peak;
mod random;
mod reduce;
mod rms_norm;
mod rope;
mod rows;
mod softmax;
mod stored;
mod stream;
mod strips;
mod swiglu;
mod transpose;
mod vectorized;

use std::sync::Arc;

use crate::backend::{
    AdamW, Backend, Binary, Destination, Distribution, Linear, LinearCrossEntropy, Reduction, Residual, Unary,
};
use crate::ops::{HOST_LOGITS, linear_cross_entropy_by_chunks, linear_cross_entropy_on_host};
use crate::{DType, Error, Limits, Memory, Result, ScatterIndex, Tensor};
use memory::Arena;
pub(crate) use memory::size_class;
use parallel::Pool;
pub(crate) use random::round_stochastically;

/// Whether the head and its loss widen bf16.
pub(crate) fn widens_head() -> bool {
    !isa::path().multiplies_bf16()
}

/// The CPU as a device: a pool of threads and an arena of memory.
pub struct Cpu {
    pool: Pool,
    arena: Arc<Arena>,
    path: isa::Path,
}

impl Cpu {
    /// A CPU backend with `threads` threads.
    ///
    /// # Errors
    /// `threads` of 0, threads that cannot be started, an instruction path in `PATCHGPT_CPU` that is unknown or not there.
    pub fn new(threads: usize) -> Result<Cpu> {
        let failed = |message: String| Error::Backend { device: "cpu".into(), message };
        if threads == 0 {
            return Err(failed("0 threads asked for; at least 1 is needed".into()));
        }
        let path = isa::detect().map_err(failed)?;
        Ok(Cpu { pool: Pool::new(threads).map_err(failed)?, arena: Arc::default(), path })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Bytes that live tensors hold.
    pub fn memory_held(&self) -> usize {
        self.arena.held()
    }

    /// The most bytes that live tensors have held at one time.
    pub fn memory_peak(&self) -> usize {
        self.arena.peak()
    }
}

/// Runs a body with the type `$F` set to the Rust type in which a dtype is computed: f32 for bf16, whose views
/// [`access::Access`] converts.
macro_rules! with_float {
    ($op:expr, $dtype:expr, $F:ident => $body:expr) => {
        match $dtype {
            crate::DType::F32 | crate::DType::BF16 => {
                type $F = f32;
                $body
            }
            crate::DType::F64 => {
                type $F = f64;
                $body
            }
            other => Err(crate::Error::dtype($op, "f32, f64 or bf16", other)),
        }
    };
}
pub(crate) use with_float;

impl Backend for Cpu {
    fn name(&self) -> String {
        let threads = self.pool.threads();
        format!("cpu ({threads} thread{}, {})", if threads == 1 { "" } else { "s" }, self.path.name())
    }

    fn allocate(&self, bytes: usize) -> Result<Box<dyn Memory>> {
        Ok(Box::new(self.arena.allocate(bytes, &self.name())?))
    }

    fn upload(&self, out: &Tensor, bytes: &[u8]) -> Result<()> {
        copy::upload(out, bytes)
    }

    fn download(&self, x: &Tensor, bytes: &mut [u8]) -> Result<()> {
        copy::download(x, bytes)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn limits(&self, dtype: DType) -> Option<Limits> {
        Some(peak::limits(&self.pool, dtype))
    }

    fn memory_peak(&self) -> Option<usize> {
        Some(self.arena.peak())
    }

    fn fill(&self, out: &Tensor, value: f64) -> Result<()> {
        copy::fill(&self.pool, out, value)
    }

    fn copy(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        copy::copy(&self.pool, out, x)
    }

    fn random(&self, out: &Tensor, distribution: Distribution, seed: u64, offset: u64) -> Result<()> {
        random::random(&self.pool, out, distribution, seed, offset)
    }

    fn unary(&self, out: &Tensor, op: Unary, x: &Tensor) -> Result<()> {
        elementwise::unary(&self.pool, out, op, x)
    }

    fn binary(&self, out: Destination, op: Binary, a: &Tensor, b: &Tensor) -> Result<()> {
        elementwise::binary(&self.pool, out, op, a, b)
    }

    fn reduce(&self, out: Destination, op: Reduction, x: &Tensor) -> Result<()> {
        reduce::reduce(&self.pool, out, op, x)
    }

    fn matmul(&self, out: Destination, a: &Tensor, b: &Tensor, alpha: f64) -> Result<()> {
        matmul::matmul(&self.pool, out, a, b, alpha)
    }

    fn linear(&self, args: Linear) -> Result<()> {
        linear::linear(&self.pool, args)
    }

    fn softmax(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        softmax::softmax(&self.pool, out, x)
    }

    fn softmax_backward(&self, d_x: Destination, d_y: &Tensor, y: &Tensor) -> Result<()> {
        softmax::softmax_backward(&self.pool, d_x, d_y, y)
    }

    fn patch_embedding(&self, out: &Tensor, table: &Tensor, ids: &Tensor) -> Result<()> {
        patch_embedding::patch_embedding(&self.pool, out, table, ids)
    }

    fn patch_embedding_backward(
        &self,
        d_table: Destination,
        d_out: &Tensor,
        index: &ScatterIndex,
        patch: usize,
    ) -> Result<()> {
        patch_embedding::patch_embedding_backward(&self.pool, d_table, d_out, index, patch)
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
        rms_norm::rms_norm(&self.pool, out, rstd, x, residual, weight, eps)
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
        rms_norm::rms_norm_backward(&self.pool, d_x, d_weight, d_out, x, weight, rstd)
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
        layer_norm::layer_norm(&self.pool, out, mean, rstd, x, residual, weight, bias, eps)
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
        layer_norm::layer_norm_backward(&self.pool, d_x, d_weight, d_bias, d_out, x, weight, mean, rstd)
    }

    fn rope(&self, out: &Tensor, x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) -> Result<()> {
        rope::rope(&self.pool, out, x, cos, sin, inverse)
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
        causal_attention::causal_attention(&self.pool, out, lse, q, k, v, scale)
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
        causal_attention::causal_attention_backward(&self.pool, [d_q, d_k, d_v], d_out, [q, k, v], out, lse, scale)
    }

    fn gelu(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        gelu::gelu(&self.pool, out, x)
    }

    fn gelu_backward(&self, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()> {
        gelu::gelu_backward(&self.pool, d_x, d_out, x)
    }

    fn swiglu(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        swiglu::swiglu(&self.pool, out, x)
    }

    fn swiglu_backward(&self, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()> {
        swiglu::swiglu_backward(&self.pool, d_x, d_out, x)
    }

    fn cross_entropy(
        &self,
        losses: &Tensor,
        lse: &Tensor,
        logits: &Tensor,
        targets: &Tensor,
        weights: &Tensor,
    ) -> Result<()> {
        cross_entropy::cross_entropy(&self.pool, losses, lse, logits, targets, weights)
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
        cross_entropy::cross_entropy_backward(&self.pool, d_logits, d_losses, logits, lse, targets, weights)
    }

    fn linear_cross_entropy(&self, args: LinearCrossEntropy) -> Result<()> {
        match self.path.multiplies_bf16() {
            true => linear_cross_entropy_by_chunks(self, HOST_LOGITS, args),
            false => linear_cross_entropy_on_host(self, args),
        }
    }

    fn adamw(&self, args: AdamW) -> Result<()> {
        adamw::adamw(&self.pool, args)
    }

    fn global_norm(&self, norm: &Tensor, clip: &Tensor, x: &Tensor, max_norm: f64) -> Result<()> {
        adamw::global_norm(&self.pool, norm, clip, x, max_norm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_tells_its_threads_and_its_memory() -> Result<()> {
        let cpu = Cpu::new(3)?;
        assert!(cpu.threads() == 3 && cpu.name().starts_with("cpu (3 threads, "), "{}", cpu.name());
        assert!(Cpu::new(1)?.name().starts_with("cpu (1 thread, "));
        let memory = cpu.allocate(1000)?;
        assert_eq!((cpu.memory_held(), cpu.memory_peak()), (1024, 1024));
        drop(memory);
        assert_eq!((cpu.memory_held(), Backend::memory_peak(&cpu)), (0, Some(1024)));
        assert_eq!(widens_head(), cpu.path != isa::Path::Avx512Bf16);
        Ok(())
    }
}
