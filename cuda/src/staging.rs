//! Pinned host memory through which uploads pass, so that the host does not wait for the device.

use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::{self, CUresult};
use patchgpt_tensor::{Result, in_words};

use crate::memory::Context;

/// Uploads up to this size go through pinned memory without waiting; larger ones are left to the driver's own staging.
const STAGED_BYTES: usize = 8 << 20;

/// Pinned host memory through which uploads pass, so that the host does not wait for the device.
pub(crate) struct Staging {
    context: Arc<Context>,
    blocks: Mutex<Vec<Pinned>>,
}

/// Pinned memory and the event that tells when the device has read it.
struct Pinned {
    host: *mut c_void,
    bytes: usize,
    read: sys::CUevent,
}

// SAFETY: reached only through the mutex; the driver's handles may be used from any thread with the context current.
unsafe impl Send for Pinned {}

impl Staging {
    pub(crate) fn new(context: Arc<Context>) -> Staging {
        Staging { context, blocks: Mutex::default() }
    }

    /// Copies host bytes to the device; they are free again when this returns.
    pub(crate) fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        let context = &*self.context;
        let what = || format!("copying {} bytes to the device", bytes.len());
        context.refuse_in_capture(what)?;
        context.bind()?;
        if bytes.len() > STAGED_BYTES {
            // SAFETY: both sides are that long; from pageable memory the driver has read the host side when this returns.
            let result = unsafe { sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), context.stream()) };
            return context.check(result, what);
        }
        let mut blocks = self.blocks.lock().unwrap_or_else(|e| e.into_inner());
        let found = blocks.iter().position(|block| {
            // SAFETY: the event is alive as long as the block.
            block.bytes >= bytes.len() && unsafe { sys::cuEventQuery(block.read) } == CUresult::CUDA_SUCCESS
        });
        let block = match found {
            Some(index) => blocks.swap_remove(index),
            None => self.pin(bytes.len().next_power_of_two().max(4096))?,
        };
        // SAFETY: the block is at least as long as the bytes and the device has read what was in it before.
        let result = unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), block.host.cast::<u8>(), bytes.len());
            sys::cuMemcpyHtoDAsync_v2(to, block.host, bytes.len(), context.stream())
        };
        // SAFETY: event and stream are alive.
        let recorded = unsafe { sys::cuEventRecord(block.read, context.stream()) };
        blocks.push(block);
        context.check(result, what)?;
        context.check(recorded, what)
    }

    fn pin(&self, bytes: usize) -> Result<Pinned> {
        let context = &*self.context;
        let (mut host, mut read) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the context is current and the pointer valid; freed in `drop`.
        let result = unsafe { sys::cuMemAllocHost_v2(&mut host, bytes) };
        context.check(result, || format!("pinning {} of host memory", in_words(bytes)))?;
        // SAFETY: as above.
        let result = unsafe { sys::cuEventCreate(&mut read, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32) };
        context.check(result, || "making an event".into())?;
        Ok(Pinned { host, bytes, read })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let bound = self.context.bind().is_ok();
        for block in self.blocks.get_mut().unwrap_or_else(|e| e.into_inner()).drain(..).filter(|_| bound) {
            // SAFETY: made in `pin`, freed once, and after the device has read it.
            unsafe {
                sys::cuEventSynchronize(block.read);
                sys::cuEventDestroy_v2(block.read);
                sys::cuMemFreeHost(block.host);
            }
        }
    }
}
