//! Device memory in the stream's order, pinned staging for uploads, and the context that owns both.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};

use cudarc::driver::sys::{self, CUresult};
use patchgpt_tensor::{Memory, Result, in_words};

use crate::emulator;
use crate::error::{backend, describe};

/// A device's primary context, its one stream, and the account of its memory.
pub(crate) struct Context {
    name: String,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    pool: sys::CUmemoryPool,
    account: Mutex<Account>,
    emulated: bool,
}

// SAFETY: the driver's handles may be used from any thread that has made the context current, which `bind` does before each use.
unsafe impl Send for Context {}
// SAFETY: as above; the driver serialises calls itself.
unsafe impl Sync for Context {}

/// What live allocations hold: how many there are of each size.
#[derive(Default)]
struct Account {
    sizes: BTreeMap<usize, usize>,
    held: usize,
    peak: usize,
}

impl Account {
    fn add(&mut self, bytes: usize) {
        *self.sizes.entry(bytes).or_default() += 1;
        self.held += bytes;
        self.peak = self.peak.max(self.held);
    }

    fn remove(&mut self, bytes: usize) {
        if let Some(count) = self.sizes.get_mut(&bytes) {
            *count -= 1;
            if *count == 0 {
                self.sizes.remove(&bytes);
            }
        }
        self.held -= bytes;
    }

    /// The sizes that hold the most, in words: `24 x 128.0 MiB, 3 x 512.0 MiB`.
    fn largest(&self) -> String {
        let mut sizes: Vec<(usize, usize)> = self.sizes.iter().map(|(&size, &count)| (size, count)).collect();
        sizes.sort_unstable_by_key(|&(size, count)| std::cmp::Reverse(size * count));
        let named: Vec<String> =
            sizes.iter().take(5).map(|&(size, count)| format!("{count} x {}", in_words(size))).collect();
        named.join(", ")
    }
}

impl Context {
    pub(crate) fn create(ordinal: usize, name: String, emulated: bool) -> Result<Arc<Context>> {
        let failed = |what: &str, result: CUresult| {
            Err(backend(
                &name,
                format!(
                    "{what} failed: {}; `nvidia-smi` tells whether another process holds the card",
                    describe(result)
                ),
            ))
        };
        let (mut device, mut context) = (0, std::ptr::null_mut());
        // SAFETY: the driver is initialised (the caller listed its devices), pointers are valid.
        let result = unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) };
        if result != CUresult::CUDA_SUCCESS {
            return failed("opening the device", result);
        }
        // SAFETY: as above; released in `drop`.
        let result = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) };
        if result != CUresult::CUDA_SUCCESS {
            return failed("making a context", result);
        }
        let mut this = Context {
            name: name.clone(),
            device,
            context,
            stream: std::ptr::null_mut(),
            pool: std::ptr::null_mut(),
            account: Mutex::default(),
            emulated,
        };
        this.bind()?;
        let mut keep = u64::MAX;
        // SAFETY: the context is current, pointers are valid; the attribute's value is a u64 as its documentation says.
        let results = unsafe {
            [
                sys::cuStreamCreate(&mut this.stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32),
                sys::cuDeviceGetDefaultMemPool(&mut this.pool, device),
                sys::cuMemPoolSetAttribute(
                    this.pool,
                    sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                    (&raw mut keep).cast(),
                ),
            ]
        };
        match results.into_iter().find(|&r| r != CUresult::CUDA_SUCCESS) {
            Some(result) => failed("making a stream and a memory pool", result),
            None => Ok(Arc::new(this)),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn device(&self) -> sys::CUdevice {
        self.device
    }

    pub(crate) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Makes the context current in this thread.
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: the context is alive until `drop`.
        let result = unsafe { sys::cuCtxSetCurrent(self.context) };
        self.check(result, || "making the context current".into())
    }

    /// An error with what was being done, unless the result is success.
    pub(crate) fn check(&self, result: CUresult, what: impl FnOnce() -> String) -> Result<()> {
        if result == CUresult::CUDA_SUCCESS {
            return Ok(());
        }
        let told = if self.emulated { emulator::last_error() } else { None };
        let reason = told.unwrap_or_else(|| describe(result));
        Err(backend(&self.name, format!("{} failed: {reason}", what())))
    }

    pub(crate) fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream is alive until `drop`.
        let result = unsafe { sys::cuStreamSynchronize(self.stream) };
        self.check(result, || "a kernel or copy asked for earlier".into())
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Bytes that live allocations hold, and the most they have held.
    pub(crate) fn held(&self) -> (usize, usize) {
        let account = self.account();
        (account.held, account.peak)
    }

    /// Memory in the stream's order.
    pub(crate) fn allocate(self: &Arc<Self>, bytes: usize) -> Result<CudaMemory> {
        let mut address = 0;
        if bytes > 0 {
            self.bind()?;
            // SAFETY: the pointer is valid and the stream alive.
            let mut result = unsafe { sys::cuMemAllocAsync(&mut address, bytes, self.stream) };
            if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                // Frees on their way through the stream, and blocks that the pool keeps in other sizes, may make room.
                self.synchronize()?;
                // SAFETY: the pool is the device's own and nothing on the stream uses what it keeps.
                unsafe { sys::cuMemPoolTrimTo(self.pool, 0) };
                // SAFETY: as above.
                result = unsafe { sys::cuMemAllocAsync(&mut address, bytes, self.stream) };
            }
            if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                return Err(self.out_of_memory(bytes));
            }
            self.check(result, || format!("allocating {bytes} bytes"))?;
            self.account().add(bytes);
        }
        Ok(CudaMemory { address, bytes, context: self.clone() })
    }

    fn out_of_memory(&self, bytes: usize) -> patchgpt_tensor::Error {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current and the pointers valid.
        let known = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) } == CUresult::CUDA_SUCCESS;
        let account = self.account();
        let mut detail = match account.held {
            0 => String::new(),
            _ => format!(" (most of it as {})", account.largest()),
        };
        if known {
            detail += &format!(", {} of the device's {} free", in_words(free), in_words(total));
        }
        patchgpt_tensor::Error::OutOfMemory { device: self.name.clone(), bytes, held: account.held, detail }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: nothing uses the stream any more, since all memory and modules hold an Arc of this. Errors have nobody to be told to.
        unsafe {
            sys::cuCtxSetCurrent(self.context);
            if !self.stream.is_null() {
                sys::cuStreamSynchronize(self.stream);
                sys::cuStreamDestroy_v2(self.stream);
            }
            sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// Device memory; freed in the stream's order when dropped.
pub struct CudaMemory {
    address: u64,
    bytes: usize,
    context: Arc<Context>,
}

impl CudaMemory {
    /// The device address of the first byte; 0 if there are none.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_of(&self, context: &Arc<Context>) -> bool {
        Arc::ptr_eq(&self.context, context)
    }
}

impl Memory for CudaMemory {}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.context.account().remove(self.bytes);
            if self.context.bind().is_ok() {
                // SAFETY: allocated on this stream and not freed before; work that uses it has been asked for earlier on the same stream.
                unsafe { sys::cuMemFreeAsync(self.address, self.context.stream) };
            }
        }
    }
}

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
        context.bind()?;
        let what = || format!("copying {} bytes to the device", bytes.len());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_names_what_holds_the_most() {
        let mut account = Account::default();
        for bytes in [1 << 30, 3 << 20, 3 << 20, 100] {
            account.add(bytes);
        }
        account.remove(100);
        assert_eq!(account.largest(), "1 x 1.0 GiB, 2 x 3.0 MiB");
        assert_eq!((account.held, account.peak), ((1 << 30) + (6 << 20), (1 << 30) + (6 << 20) + 100));
    }
}
