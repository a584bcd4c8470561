//! What the driver answers, as errors that say what was being done.

use std::ffi::CStr;

use cudarc::driver::sys::{self, CUresult};
use patchgpt_tensor::Error;

/// An error of `device`.
pub(crate) fn backend(device: impl ToString, message: impl Into<String>) -> Error {
    Error::Backend { device: device.to_string(), message: message.into() }
}

/// The driver's name and description of a result: `CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered`.
pub(crate) fn describe(result: CUresult) -> String {
    let text = |get: unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult| {
        let mut pointer = std::ptr::null();
        // SAFETY: the driver sets the pointer to a string of static lifetime, or to null for a code it does not know.
        let ok = unsafe { get(result, &mut pointer) } == CUresult::CUDA_SUCCESS && !pointer.is_null();
        // SAFETY: checked to be such a string.
        ok.then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
    };
    match (text(sys::cuGetErrorName), text(sys::cuGetErrorString)) {
        (Some(name), Some(description)) => format!("{name}: {description}"),
        _ => format!("CUDA error {}", result as u32),
    }
}
