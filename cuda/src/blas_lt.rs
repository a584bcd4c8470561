//! cuBLASLt: products with what follows them. A [`Plan`] is all that the library wants to know of a problem, the algorithm included; it is made once for
//! each problem, so that later calls, those that are recorded in a graph among them, do nothing but enqueue.
//!
//! Sums are f32 (no TF32), also where k is split: partial sums in the output's type, in place or in the workspace, are not allowed, which leaves the
//! algorithms without any and those that keep f32 in the workspace and add them in a step of their own. Neither uses atomics, and NVIDIA promises the same
//! bits on every run with one version of the library and one kind of card, as long as one stream uses the workspace. Which algorithm computes a
//! problem, the library's heuristic decides from the problem, its version and the card; or a timed search (`search.rs`), whose choices are values to
//! be kept.

mod problem;
mod search;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use cudarc::cublaslt::sys as lt;
use patchgpt_tensor::{DType, Result};

use crate::blas::{Factor, Gemm, WORKSPACE_BYTES};
use crate::device::Cuda;
use crate::emulator;
use crate::error::backend;
use crate::memory::{Context, CudaMemory};
use crate::probe::Library;
use problem::Problem;
pub use search::GemmChoices;

/// What follows a product, before its sums are rounded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Epilogue {
    None,
    /// `C = sum + bias`, the bias at this address: one number for each row of C, dense, of its dtype.
    Bias(u64),
    /// `C = gelu(sum + bias)`.
    Gelu {
        bias: Option<u64>,
        /// Where `sum + bias` goes, rounded: a matrix like C.
        sum: u64,
        /// Elements from one of its columns to the next.
        leading: usize,
    },
}

impl Epilogue {
    fn bias(&self) -> Option<u64> {
        match *self {
            Epilogue::None => None,
            Epilogue::Bias(bias) => Some(bias),
            Epilogue::Gelu { bias, .. } => bias,
        }
    }
}

/// A handle of cuBLASLt with the plans of all problems so far.
pub(crate) struct BlasLt {
    handle: lt::cublasLtHandle_t,
    context: Arc<Context>,
    workspace: Arc<CudaMemory>,
    state: Mutex<State>,
}

struct State {
    /// `None` for problems that the library does not take.
    plans: HashMap<Problem, Option<Plan>>,
    /// What a search has chosen, where there is one.
    search: Option<GemmChoices>,
}

// SAFETY: the handle may be used from any thread, and plans are reached through the mutex alone; all products are enqueued on one stream.
unsafe impl Send for BlasLt {}
// SAFETY: as above.
unsafe impl Sync for BlasLt {}

/// How a problem is computed.
struct Plan {
    descriptor: Descriptor,
    layouts: [Layout; 3],
    algorithm: lt::cublasLtMatmulAlgo_t,
}

impl BlasLt {
    /// With a search that goes on from `choices`, or without one.
    ///
    /// # Errors
    /// A library that is missing or too old; choices for another version of it or another card.
    pub(crate) fn new(cuda: &Cuda, choices: Option<GemmChoices>) -> Result<BlasLt> {
        Library::CublasLt.require()?;
        let context = cuda.context().clone();
        if let Some(choices) = &choices {
            choices.check(&BlasLt::no_choices(cuda)?).map_err(|message| backend(context.name(), message))?;
        }
        context.bind()?;
        let workspace = cuda.products_workspace()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the library is there and the pointer valid.
        let created = unsafe { lt::cublasLtCreate(&mut handle) };
        check(&context, created, || "starting cuBLASLt".into())?;
        Ok(BlasLt { handle, context, workspace, state: State { plans: HashMap::new(), search: choices }.into() })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Enqueues products, accumulated in f32; `false` if the library has no algorithm for them, and nothing was done.
    pub(crate) fn gemm(&self, g: &Gemm, epilogue: &Epilogue) -> Result<bool> {
        let context = &*self.context;
        context.bind()?;
        let problem = Problem::of(g, epilogue);
        let mut state = self.state();
        let State { plans, search } = &mut *state;
        let plan = match plans.entry(problem) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let plan = self.plan(new.key(), g, epilogue, search)?;
                new.insert(plan)
            }
        };
        let Some(plan) = plan else { return Ok(false) };
        plan.descriptor.point(context, epilogue)?;
        let status = self.enqueue(plan, g, g.beta, g.c.address);
        check(context, status, || format!("the product {problem}"))?;
        Ok(true)
    }

    /// A product and its epilogue in words.
    pub(crate) fn describe(&self, g: &Gemm, epilogue: &Epilogue) -> String {
        Problem::of(g, epilogue).to_string()
    }

    /// What the search has chosen.
    pub(crate) fn choices(&self) -> Option<GemmChoices> {
        self.state().search.clone()
    }

    /// How a problem is computed; `None` if the library does not take it.
    fn plan(
        &self,
        problem: &Problem,
        g: &Gemm,
        epilogue: &Epilogue,
        search: &mut Option<GemmChoices>,
    ) -> Result<Option<Plan>> {
        let context = &*self.context;
        if !problem.has_room_for_gelu() {
            return Ok(None);
        }
        let descriptor = Descriptor::new(context, g, epilogue)?;
        let [a, b, c] = g.stored();
        let layout = |factor, stored| Layout::new(context, factor, stored, g.batch);
        let layouts = [layout(&g.a, a)?, layout(&g.b, b)?, layout(&g.c, c)?];
        let mut plan = Plan { descriptor, layouts, algorithm: lt::cublasLtMatmulAlgo_t { data: [0; 8] } };
        let chosen = match search {
            None => self.heuristic(&plan, problem, 1)?.pop(),
            Some(choices) => match choices.of(problem) {
                Some(known) => Some(self.known(&plan, problem, known)?),
                None => self.search(&mut plan, problem, g, epilogue)?.inspect(|found| choices.keep(problem, found)),
            },
        };
        Ok(chosen.map(|algorithm| Plan { algorithm, ..plan }))
    }

    /// Up to `count` algorithms, those that the library expects to be fast first; none if it does not take the problem.
    fn heuristic(&self, plan: &Plan, problem: &Problem, count: usize) -> Result<Vec<lt::cublasLtMatmulAlgo_t>> {
        use lt::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let context = &*self.context;
        let preference = Preference::new(context)?;
        preference.set(context, Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE_BYTES as u64)?;
        let schemes = lt::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(context, Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes)?;
        let [a, b, c] = problem.alignments();
        preference.set(context, Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a)?;
        preference.set(context, Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b)?;
        preference.set(context, Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c)?;
        preference.set(context, Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c)?;
        let mut found = vec![empty_result(); count];
        let mut number = 0;
        let [a, b, c] = plan.layouts.each_ref().map(|layout| layout.0);
        // SAFETY: all handles are alive; there is room for `count` results.
        let status = unsafe {
            lt::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                plan.descriptor.0,
                a,
                b,
                c,
                c,
                preference.0,
                count as i32,
                found.as_mut_ptr(),
                &mut number,
            )
        };
        if status == lt::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
            return Ok(Vec::new());
        }
        check(context, status, || format!("asking for an algorithm for the product {problem}"))?;
        found.truncate(number as usize);
        found.retain(|result| result.state == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        Ok(found.into_iter().map(|result| result.algo).collect())
    }

    /// Enqueues a plan with C at `c`.
    fn enqueue(&self, plan: &Plan, g: &Gemm, beta: f32, c: u64) -> lt::cublasStatus_t {
        let [a, b, d] = plan.layouts.each_ref().map(|layout| layout.0);
        // SAFETY: all handles are alive; addresses, leading dimensions and strides describe tensors that live until the stream has passed (their
        // memory is freed in the stream's order); alpha and beta are read before the call returns (host pointer mode, the default); the
        // workspace is as long as the algorithms were asked for, aligned to 256 bytes, and used by nothing else on the stream meanwhile.
        unsafe {
            lt::cublasLtMatmul(
                self.handle,
                plan.descriptor.0,
                (&raw const g.alpha).cast(),
                g.a.address as *const c_void,
                a,
                g.b.address as *const c_void,
                b,
                (&raw const beta).cast(),
                c as *const c_void,
                d,
                c as *mut c_void,
                d,
                &plan.algorithm,
                self.workspace.address() as *mut c_void,
                WORKSPACE_BYTES,
                self.context.stream().cast(),
            )
        }
    }
}

impl Drop for BlasLt {
    fn drop(&mut self) {
        if self.context.synchronize().is_ok() {
            // SAFETY: created once, destroyed once, and nothing on the stream uses it.
            unsafe { lt::cublasLtDestroy(self.handle) };
        }
    }
}

/// What is multiplied how.
struct Descriptor(lt::cublasLtMatmulDesc_t);

impl Descriptor {
    fn new(context: &Context, g: &Gemm, epilogue: &Epilogue) -> Result<Descriptor> {
        use lt::cublasLtEpilogue_t as Kind;
        use lt::cublasLtMatmulDescAttributes_t as Attribute;
        let mut raw = std::ptr::null_mut();
        let (compute, scale) = (lt::cublasComputeType_t::CUBLAS_COMPUTE_32F, lt::cudaDataType_t::CUDA_R_32F);
        // SAFETY: the pointer is valid.
        let made = unsafe { lt::cublasLtMatmulDescCreate(&mut raw, compute, scale) };
        check(context, made, || "describing a product".into())?;
        let this = Descriptor(raw);
        // CUBLAS_OP_N and CUBLAS_OP_T are 0 and 1.
        this.set(context, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, i32::from(g.a.transposed))?;
        this.set(context, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, i32::from(g.b.transposed))?;
        let kind = match epilogue {
            Epilogue::None => Kind::CUBLASLT_EPILOGUE_DEFAULT,
            Epilogue::Bias(_) => Kind::CUBLASLT_EPILOGUE_BIAS,
            Epilogue::Gelu { bias: Some(_), .. } => Kind::CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
            Epilogue::Gelu { bias: None, .. } => Kind::CUBLASLT_EPILOGUE_GELU_AUX,
        };
        this.set(context, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, kind as u32)?;
        if let Epilogue::Gelu { leading, .. } = epilogue {
            this.set(context, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, *leading as i64)?;
        }
        this.point(context, epilogue)?;
        Ok(this)
    }

    /// Names the memory of the epilogue, from whose addresses the heuristic also learns what alignment it may count on.
    fn point(&self, context: &Context, epilogue: &Epilogue) -> Result<()> {
        use lt::cublasLtMatmulDescAttributes_t as Attribute;
        if let Some(bias) = epilogue.bias() {
            self.set(context, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        match epilogue {
            Epilogue::Gelu { sum, .. } => self.set(context, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, *sum),
            _ => Ok(()),
        }
    }

    fn set<T: Copy>(&self, context: &Context, which: lt::cublasLtMatmulDescAttributes_t, value: T) -> Result<()> {
        // SAFETY: the handle is alive; the value has the attribute's type by the library's documentation, and its size is passed.
        let set =
            unsafe { lt::cublasLtMatmulDescSetAttribute(self.0, which, (&raw const value).cast(), size_of::<T>()) };
        check(context, set, || format!("setting {which:?}"))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once.
        unsafe { lt::cublasLtMatmulDescDestroy(self.0) };
    }
}

/// How a matrix and its successors in the batch lie in memory.
struct Layout(lt::cublasLtMatrixLayout_t);

impl Layout {
    /// Of a batch of matrices with rows and columns as they lie in memory.
    fn new(context: &Context, factor: &Factor, [rows, columns]: [usize; 2], batch: usize) -> Result<Layout> {
        use lt::cublasLtMatrixLayoutAttribute_t as Attribute;
        let mut raw = std::ptr::null_mut();
        let dtype = data_type(context, factor.dtype)?;
        // SAFETY: the pointer is valid.
        let made = unsafe {
            lt::cublasLtMatrixLayoutCreate(&mut raw, dtype, rows as u64, columns as u64, factor.leading as i64)
        };
        check(context, made, || "describing a matrix".into())?;
        let this = Layout(raw);
        if batch > 1 {
            let batch = i32::try_from(batch).map_err(|_| {
                backend(context.name(), format!("matmul: batches below 2^31 expected by cuBLASLt, got {batch}"))
            })?;
            this.set(context, Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, batch)?;
            this.set(context, Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, factor.stride as i64)?;
        }
        Ok(this)
    }

    fn set<T: Copy>(&self, context: &Context, which: lt::cublasLtMatrixLayoutAttribute_t, value: T) -> Result<()> {
        // SAFETY: as for a descriptor's.
        let set =
            unsafe { lt::cublasLtMatrixLayoutSetAttribute(self.0, which, (&raw const value).cast(), size_of::<T>()) };
        check(context, set, || format!("setting {which:?}"))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once.
        unsafe { lt::cublasLtMatrixLayoutDestroy(self.0) };
    }
}

/// What algorithms may use.
struct Preference(lt::cublasLtMatmulPreference_t);

impl Preference {
    fn new(context: &Context) -> Result<Preference> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is valid.
        let made = unsafe { lt::cublasLtMatmulPreferenceCreate(&mut raw) };
        check(context, made, || "describing what algorithms may use".into())?;
        Ok(Preference(raw))
    }

    fn set<T: Copy>(&self, context: &Context, which: lt::cublasLtMatmulPreferenceAttributes_t, value: T) -> Result<()> {
        // SAFETY: as for a descriptor's.
        let set = unsafe {
            lt::cublasLtMatmulPreferenceSetAttribute(self.0, which, (&raw const value).cast(), size_of::<T>())
        };
        check(context, set, || format!("setting {which:?}"))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once.
        unsafe { lt::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}

/// Room for one of the heuristic's results.
fn empty_result() -> lt::cublasLtMatmulHeuristicResult_t {
    lt::cublasLtMatmulHeuristicResult_t {
        algo: lt::cublasLtMatmulAlgo_t { data: [0; 8] },
        workspaceSize: 0,
        state: lt::cublasStatus_t::CUBLAS_STATUS_NOT_INITIALIZED,
        wavesCount: 0.0,
        reserved: [0; 4],
    }
}

fn data_type(context: &Context, dtype: DType) -> Result<lt::cudaDataType_t> {
    match dtype {
        DType::F32 => Ok(lt::cudaDataType_t::CUDA_R_32F),
        DType::BF16 => Ok(lt::cudaDataType_t::CUDA_R_16BF),
        other => Err(backend(context.name(), format!("matmul: f32 or bf16 expected, got {other}"))),
    }
}

fn check(context: &Context, status: lt::cublasStatus_t, what: impl FnOnce() -> String) -> Result<()> {
    if status == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    let reason = emulator::last_error().unwrap_or_else(|| format!("{status:?}"));
    Err(backend(context.name(), format!("{} failed: {reason}", what())))
}
