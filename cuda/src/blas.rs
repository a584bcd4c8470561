//! cuBLAS: one handle on the device's stream, with a given workspace, so that results do not depend on what else runs.

use std::sync::Arc;

use cudarc::cublas::sys as cublas;
use patchgpt_tensor::{DType, Result};

use crate::error::backend;
use crate::memory::{Context, CudaMemory};
use crate::probe::Library;

/// What NVIDIA advises for Hopper; smaller cards need less.
pub(crate) const WORKSPACE_BYTES: usize = 32 << 20;

/// A cuBLAS handle.
pub(crate) struct Blas {
    handle: cublas::cublasHandle_t,
    context: Arc<Context>,
    _workspace: Arc<CudaMemory>,
}

// SAFETY: cuBLAS lets threads share a handle as long as its settings stay, which are made once in `new`; all calls enqueue on one stream.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

/// A batch of column-major products `C = alpha op(A) op(B) + beta C`, op being the transpose where `transposed`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm {
    /// Rows of C and of op(A).
    pub m: usize,
    /// Columns of C and of op(B).
    pub n: usize,
    /// Columns of op(A) and rows of op(B).
    pub k: usize,
    pub a: Factor,
    pub b: Factor,
    pub c: Factor,
    pub alpha: f32,
    pub beta: f32,
    pub batch: usize,
}

impl Gemm {
    /// Rows and columns of a, b and c as they lie in memory.
    pub(crate) fn stored(&self) -> [[usize; 2]; 3] {
        let of = |f: &Factor, rows, columns| if f.transposed { [columns, rows] } else { [rows, columns] };
        [of(&self.a, self.m, self.k), of(&self.b, self.k, self.n), of(&self.c, self.m, self.n)]
    }
}

/// A matrix of a [`Gemm`] and its successors in the batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factor {
    pub address: u64,
    pub dtype: DType,
    pub transposed: bool,
    /// Elements from one column to the next.
    pub leading: usize,
    /// Elements from one matrix of the batch to the next.
    pub stride: usize,
}

impl Blas {
    /// With a workspace of [`WORKSPACE_BYTES`], shared with others on the same stream: products run one after another.
    pub(crate) fn new(context: Arc<Context>, workspace: Arc<CudaMemory>) -> Result<Blas> {
        Library::Cublas.require()?;
        context.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the library is there and the pointer valid.
        let created = unsafe { cublas::cublasCreate_v2(&mut handle) };
        check(&context, created, || "starting cuBLAS".into())?;
        let blas = Blas { handle, context, _workspace: workspace };
        // SAFETY: the handle is alive, the stream is the context's, the workspace lives as long as the handle and is aligned to 256 bytes.
        let results = unsafe {
            [
                cublas::cublasSetStream_v2(handle, blas.context.stream().cast()),
                cublas::cublasSetWorkspace_v2(handle, blas._workspace.address() as *mut _, WORKSPACE_BYTES),
                // Sums of bf16 products stay in f32 also where the library splits k.
                cublas::cublasSetMathMode(
                    handle,
                    cublas::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION,
                ),
            ]
        };
        for result in results {
            check(&blas.context, result, || "setting cuBLAS up".into())?;
        }
        Ok(blas)
    }

    /// Enqueues products, accumulated in f32.
    pub(crate) fn gemm(&self, g: &Gemm) -> Result<()> {
        let context = &self.context;
        let int = |n: usize| {
            i32::try_from(n).map_err(|_| {
                backend(context.name(), format!("matmul: sizes and row strides below 2^31 expected by cuBLAS, got {n}"))
            })
        };
        let operation = |f: &Factor| match f.transposed {
            true => cublas::cublasOperation_t::CUBLAS_OP_T,
            false => cublas::cublasOperation_t::CUBLAS_OP_N,
        };
        context.bind()?;
        // SAFETY: the handle is alive; addresses, leading dimensions and strides describe tensors that live until the stream has passed (their
        // memory is freed in the stream's order); alpha and beta are read before the call returns (host pointer mode).
        let result = unsafe {
            cublas::cublasGemmStridedBatchedEx(
                self.handle,
                operation(&g.a),
                operation(&g.b),
                int(g.m)?,
                int(g.n)?,
                int(g.k)?,
                (&raw const g.alpha).cast(),
                g.a.address as *const _,
                data_type(context, g.a.dtype)?,
                int(g.a.leading)?,
                g.a.stride as i64,
                g.b.address as *const _,
                data_type(context, g.b.dtype)?,
                int(g.b.leading)?,
                g.b.stride as i64,
                (&raw const g.beta).cast(),
                g.c.address as *mut _,
                data_type(context, g.c.dtype)?,
                int(g.c.leading)?,
                g.c.stride as i64,
                int(g.batch)?,
                cublas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        check(context, result, || format!("a product of {} x {} x {}, {} of them", g.m, g.k, g.n, g.batch))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        if self.context.synchronize().is_ok() {
            // SAFETY: created once, destroyed once, and nothing on the stream uses it.
            unsafe { cublas::cublasDestroy_v2(self.handle) };
        }
    }
}

fn data_type(context: &Context, dtype: DType) -> Result<cublas::cudaDataType_t> {
    match dtype {
        DType::F32 => Ok(cublas::cudaDataType_t::CUDA_R_32F),
        DType::BF16 => Ok(cublas::cudaDataType_t::CUDA_R_16BF),
        other => Err(backend(context.name(), format!("matmul: f32 or bf16 expected, got {other}"))),
    }
}

fn check(context: &Context, status: cublas::cublasStatus_t, what: impl FnOnce() -> String) -> Result<()> {
    match status {
        cublas::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        other => Err(backend(context.name(), format!("{} failed: {other:?}", what()))),
    }
}
