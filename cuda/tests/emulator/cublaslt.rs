//! What the emulated cuBLASLt refuses, so that a launcher that passes here passes on a card: one call that is right, and the same with one mistake each.

use std::ffi::c_void;
use std::ptr::null_mut;

use cudarc::cublaslt::sys::{self as lt, cublasStatus_t as Status};
use cudarc::driver::sys as driver;
use patchgpt_cuda::Cuda;
use patchgpt_tensor::{DType, Tensor};

use crate::device;

const F32: lt::cudaDataType_t = lt::cudaDataType_t::CUDA_R_32F;
const BF16: lt::cudaDataType_t = lt::cudaDataType_t::CUDA_R_16BF;

/// `d [24, 4] = gelu(a [24, 8] b [8, 4] + bias)`, column-major, and what can be wrong about it.
struct Call {
    compute: lt::cublasComputeType_t,
    types: [lt::cudaDataType_t; 3],
    rows: [u64; 3],
    leading: [i64; 3],
    batch_of_a: i32,
    epilogue: u32,
    has_bias: bool,
    bytes_of_epilogue: usize,
    aux_leading: i64,
    /// Bytes that pointers are moved by: a, auxiliary output, workspace.
    moved: [u64; 3],
    /// What the heuristic is told of a's alignment.
    alignment: u32,
    workspace: usize,
    /// What is done to the algorithm.
    spoil: fn(&mut lt::cublasLtMatmulAlgo_t),
    /// The leading dimension of d in the call itself.
    leading_of_call: i64,
}

fn right() -> Call {
    Call {
        compute: lt::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        types: [BF16; 3],
        rows: [24, 8, 24],
        leading: [24, 8, 24],
        batch_of_a: 1,
        epilogue: lt::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU_AUX_BIAS as u32,
        has_bias: true,
        bytes_of_epilogue: 4,
        aux_leading: 24,
        moved: [0; 3],
        alignment: 16,
        workspace: 1 << 20,
        spoil: |_| {},
        leading_of_call: 24,
    }
}

fn ok(status: Status) -> Result<(), Status> {
    if status == Status::CUBLAS_STATUS_SUCCESS { Ok(()) } else { Err(status) }
}

impl Call {
    /// The status of the first call of the library that fails.
    fn run(&self) -> Result<(), Status> {
        let device = device();
        let cuda = device.downcast::<Cuda>().expect("CUDA");
        let memory = |bytes: usize| Tensor::zeros(&[bytes / 4], DType::F32, &device).expect("memory");
        let tensors = [memory(4096), memory(4096), memory(4096), memory(4096), memory(4096), memory(1 << 20)];
        let [a, b, d, bias, aux, workspace] = tensors.each_ref().map(|t| cuda.address(t).expect("an address"));
        device.synchronize().expect("zeros");
        let (mut handle, mut descriptor, mut preference, mut stream) = (null_mut(), null_mut(), null_mut(), null_mut());
        let mut layouts = [null_mut(); 3];
        let columns = [8, 4, 4];
        // SAFETY: the emulated library is loaded; pointers are valid; sizes are those of the values, but for the mistakes, which it refuses.
        unsafe {
            assert_eq!(driver::cuStreamCreate(&mut stream, 0), driver::CUresult::CUDA_SUCCESS);
            ok(lt::cublasLtCreate(&mut handle))?;
            ok(lt::cublasLtMatmulDescCreate(&mut descriptor, self.compute, F32))?;
            let set = |which, value: *const c_void, bytes| {
                ok(lt::cublasLtMatmulDescSetAttribute(descriptor, which, value, bytes))
            };
            use lt::cublasLtMatmulDescAttributes_t as Attribute;
            set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, (&raw const self.epilogue).cast(), self.bytes_of_epilogue)?;
            if self.has_bias {
                set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, (&raw const bias).cast(), 8)?;
            }
            let aux = aux + self.moved[1];
            set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, (&raw const aux).cast(), 8)?;
            set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, (&raw const self.aux_leading).cast(), 8)?;
            for i in 0..3 {
                let (rows, leading) = (self.rows[i], self.leading[i]);
                ok(lt::cublasLtMatrixLayoutCreate(&mut layouts[i], self.types[i], rows, columns[i], leading))?;
            }
            let batch = lt::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
            ok(lt::cublasLtMatrixLayoutSetAttribute(layouts[0], batch, (&raw const self.batch_of_a).cast(), 4))?;
            ok(lt::cublasLtMatmulPreferenceCreate(&mut preference))?;
            use lt::cublasLtMatmulPreferenceAttributes_t as Wish;
            let wish = |which, value: *const c_void, bytes| {
                ok(lt::cublasLtMatmulPreferenceSetAttribute(preference, which, value, bytes))
            };
            wish(Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const self.workspace).cast(), 8)?;
            wish(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (&raw const self.alignment).cast(), 4)?;
            let [la, lb, ld] = layouts;
            let mut found: [lt::cublasLtMatmulHeuristicResult_t; 2] = std::mem::zeroed();
            let mut count = 0;
            ok(lt::cublasLtMatmulAlgoGetHeuristic(
                handle,
                descriptor,
                la,
                lb,
                ld,
                ld,
                preference,
                2,
                found.as_mut_ptr(),
                &mut count,
            ))?;
            // The second one cuts k, and needs a workspace for that.
            let mut algorithm = found[count as usize - 1].algo;
            (self.spoil)(&mut algorithm);
            let mut of_call = null_mut();
            ok(lt::cublasLtMatrixLayoutCreate(&mut of_call, self.types[2], self.rows[2], 4, self.leading_of_call))?;
            let (one, zero) = (1f32, 0f32);
            let [a, workspace] = [a + self.moved[0], workspace + self.moved[2]];
            ok(lt::cublasLtMatmul(
                handle,
                descriptor,
                (&raw const one).cast(),
                a as *const c_void,
                la,
                b as *const c_void,
                lb,
                (&raw const zero).cast(),
                d as *const c_void,
                of_call,
                d as *mut c_void,
                of_call,
                &algorithm,
                workspace as *mut c_void,
                self.workspace,
                stream.cast(),
            ))?;
            assert_eq!(driver::cuStreamSynchronize(stream), driver::CUresult::CUDA_SUCCESS);
        }
        Ok(())
    }
}

#[test]
fn a_call_is_taken_and_each_mistake_is_refused() {
    assert_eq!(right().run(), Ok(()));
    use Status::{CUBLAS_STATUS_INVALID_VALUE as INVALID, CUBLAS_STATUS_NOT_SUPPORTED as UNSUPPORTED};
    type Mistake = fn(&mut Call);
    let mistakes: [(&str, Status, Mistake); 20] = [
        ("TF32", UNSUPPORTED, |c| c.compute = lt::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32),
        ("factors of two types", UNSUPPORTED, |c| c.types[0] = F32),
        ("f32 into bf16", UNSUPPORTED, |c| c.types = [F32, F32, BF16]),
        ("a k of 8 and of 16", INVALID, |c| (c.rows[1], c.leading[1]) = (16, 16)),
        ("more rows of d than of a", INVALID, |c| (c.rows[2], c.leading[2], c.aux_leading) = (32, 32, 32)),
        ("columns that overlap", INVALID, |c| c.leading[0] = 23),
        ("batches of 1 and of 2", INVALID, |c| c.batch_of_a = 2),
        ("another epilogue", UNSUPPORTED, |c| c.epilogue = lt::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_RELU as u32),
        ("an attribute of 8 bytes", INVALID, |c| c.bytes_of_epilogue = 8),
        ("no bias", INVALID, |c| c.has_bias = false),
        ("no leading dimension of the auxiliary", INVALID, |c| c.aux_leading = 0),
        ("an auxiliary narrower than d", INVALID, |c| c.aux_leading = 16),
        ("an auxiliary of leading 28", INVALID, |c| c.aux_leading = 28),
        ("an auxiliary at 4 bytes", UNSUPPORTED, |c| c.moved[1] = 4),
        ("no alignment", UNSUPPORTED, |c| c.alignment = 2),
        ("less alignment than promised", INVALID, |c| c.moved[0] = 8),
        ("a workspace at 4 bytes", INVALID, |c| c.moved[2] = 4),
        ("an algorithm of nobody's", INVALID, |c| c.spoil = |algorithm| algorithm.data[0] ^= 1),
        ("k cut into more parts than it has", INVALID, |c| c.spoil = |algorithm| algorithm.data[1] = 9),
        ("an algorithm for another problem", INVALID, |c| c.leading_of_call = 32),
    ];
    for (what, status, mistake) in mistakes {
        let mut call = right();
        mistake(&mut call);
        assert_eq!(call.run(), Err(status), "{what}");
    }
}
