//! [`TensorMap`]: where a tensor lies and which box of it one copy moves, for `tensor_load` of kernels/hopper.cuh.

use bytemuck::{Pod, Zeroable};
use cudarc::driver::sys;
use patchgpt_tensor::{DType, Error, Result, Tensor};

use crate::device::Cuda;

/// The driver's description of a tensor for the copy engine of compute capability 9.0 and newer: a kernel's parameter
/// `const GRID_CONSTANT TensorMap x`, passed with [`Launch::value`](crate::Launch::value).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct TensorMap([u64; 16]);

impl Cuda {
    /// Whether [`Cuda::tensor_map`] can describe a tensor: bf16 with elements, addresses and strides that are multiples
    /// of 16 bytes, no dimension repeated by a stride of 0, on a device and a driver that know tensor maps.
    pub fn mappable(&self, tensor: &Tensor) -> bool {
        // SAFETY: the driver is present; the symbol is looked up, not called.
        let known = unsafe { sys::culib().get::<unsafe extern "C" fn()>(b"cuTensorMapEncodeTiled") }.is_ok();
        let repeated = (0..tensor.rank()).any(|d| tensor.dim(d) > 1 && tensor.strides()[d] == 0);
        known
            && self.info().compute_capability >= (9, 0)
            && tensor.dtype() == DType::BF16
            && (2..=5).contains(&tensor.rank())
            && !tensor.is_empty()
            && !repeated
            && self.aligned(tensor)
    }

    /// Describes a bf16 tensor of rank 2 to 5 whose last dimension is contiguous. One copy moves a box of `shape`
    /// elements (one number a dimension, at most 256 each; the last at most 64), under the 128-byte swizzle.
    ///
    /// # Errors
    /// A tensor that is not [`Cuda::mappable`], or a box that the driver does not take.
    pub fn tensor_map(&self, tensor: &Tensor, shape: &[usize]) -> Result<TensorMap> {
        let rank = tensor.rank();
        if !self.mappable(tensor) || shape.len() != rank {
            let message = format!("no tensor map of {:?} {} with boxes of {shape:?}", tensor.shape(), tensor.dtype());
            return Err(Error::Backend { device: self.to_string(), message });
        }
        // The driver counts dimensions from the last.
        let backwards = || (0..rank).rev();
        let sizes: Vec<u64> = backwards().map(|d| tensor.dim(d) as u64).collect();
        // Strides in bytes, of all dimensions but the last; that of a dimension of one element says nothing, and becomes what
        // it would be without gaps.
        let mut strides: Vec<u64> = Vec::with_capacity(rank);
        let mut dense = tensor.dim(rank - 1) * tensor.dtype().size();
        for d in backwards().skip(1) {
            let stride = if tensor.dim(d) > 1 { tensor.strides()[d] * tensor.dtype().size() } else { dense };
            strides.push(stride as u64);
            dense = stride * tensor.dim(d);
        }
        let boxes: Vec<u32> = backwards().map(|d| shape[d] as u32).collect();
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        self.bind()?;
        // SAFETY: the map is aligned by its type, and all arrays have as many entries as the rank says (strides one less).
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                rank as u32,
                self.address(tensor)? as *mut std::ffi::c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                [1; 5].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        self.check(result, || format!("a tensor map of {:?} with boxes of {shape:?}", tensor.shape()))?;
        Ok(TensorMap(map.opaque))
    }
}
