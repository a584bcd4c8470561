//! Device memory in the stream's order, and the context that owns it. While work is recorded, memory is a part of the recording's own (capture.rs).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use cudarc::driver::sys::{self, CUresult};
use patchgpt_tensor::{Memory, Place, Result, in_words};

use crate::capture::Recorder;
use crate::emulator;
use crate::error::{backend, describe};

/// A device's primary context, its one stream, and the account of its memory.
pub(crate) struct Context {
    name: String,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    pool: sys::CUmemoryPool,
    state: Mutex<State>,
    /// Whether the stream is being recorded: a copy of what `state` holds, for those who ask often.
    pub(crate) capturing: AtomicBool,
    emulated: bool,
}

/// What changes about a context.
#[derive(Default)]
pub(crate) struct State {
    account: Account,
    /// A rehearsal or a recording that is under way.
    pub(crate) recorder: Option<Recorder>,
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
            state: Mutex::default(),
            capturing: AtomicBool::new(false),
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

    /// Makes the context current in this thread, which must not be beside one that records.
    pub(crate) fn bind(&self) -> Result<()> {
        if self.capturing.load(Ordering::Acquire) {
            self.state().check_thread(&self.name)?;
        }
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
        self.refuse_in_capture(|| "waiting for the device".into())?;
        self.bind()?;
        // SAFETY: the stream is alive until `drop`.
        let result = unsafe { sys::cuStreamSynchronize(self.stream) };
        self.check(result, || "a kernel or copy asked for earlier".into())
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Bytes that live allocations hold, and the most they have held.
    pub(crate) fn held(&self) -> (usize, usize) {
        let State { account, .. } = &*self.state();
        (account.held, account.peak)
    }

    /// Memory in the stream's order, or of the recording that is under way.
    pub(crate) fn allocate(self: &Arc<Self>, bytes: usize) -> Result<CudaMemory> {
        if bytes == 0 {
            return Ok(CudaMemory { address: 0, bytes, block: None, _place: None, context: self.clone() });
        }
        let (place, arena) = self.state().place(&self.name, bytes)?.unzip();
        let (block, offset) = match (arena.flatten(), &place) {
            (Some(block), Some(place)) => (block, place.offset() as u64),
            _ => (self.block(bytes, false)?, 0),
        };
        let address = block.address + offset;
        Ok(CudaMemory { address, bytes, block: Some(block), _place: place, context: self.clone() })
    }

    /// Memory that stays, whatever is under way: for what is made once and kept.
    pub(crate) fn allocate_lasting(self: &Arc<Self>, bytes: usize) -> Result<CudaMemory> {
        let block = self.block(bytes, false)?;
        Ok(CudaMemory { address: block.address, bytes, block: Some(block), _place: None, context: self.clone() })
    }

    /// A block of the driver's, to be cut into places if `is_arena`.
    pub(crate) fn block(self: &Arc<Self>, bytes: usize, is_arena: bool) -> Result<Arc<Block>> {
        self.refuse_in_capture(|| format!("allocating {bytes} bytes that stay"))?;
        self.bind()?;
        let mut address = 0;
        // SAFETY: the pointer is valid and the stream alive.
        let mut result = unsafe { sys::cuMemAllocAsync(&mut address, bytes, self.stream) };
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            // Frees on their way through the stream, and blocks that the pool keeps in other sizes, may make room.
            self.trim()?;
            // SAFETY: as above.
            result = unsafe { sys::cuMemAllocAsync(&mut address, bytes, self.stream) };
        }
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(self.out_of_memory(bytes));
        }
        self.check(result, || format!("allocating {bytes} bytes"))?;
        self.state().account.add(bytes);
        Ok(Block { address, bytes, is_arena, context: self.clone() }.into())
    }

    /// Gives memory that nobody holds back to the driver, for others or for blocks of other sizes.
    pub(crate) fn trim(&self) -> Result<()> {
        self.synchronize()?;
        // SAFETY: the pool is the device's own and nothing on the stream uses what it keeps.
        unsafe { sys::cuMemPoolTrimTo(self.pool, 0) };
        Ok(())
    }

    /// Gives a block back in the stream's order. The caller has made sure that the stream is not being recorded.
    pub(crate) fn free(&self, address: u64) {
        if self.bind().is_ok() {
            // SAFETY: allocated on this stream and not freed before; work that uses it has been asked for earlier on the same stream.
            unsafe { sys::cuMemFreeAsync(address, self.stream) };
        }
    }

    fn out_of_memory(&self, bytes: usize) -> patchgpt_tensor::Error {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current and the pointers valid.
        let known = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) } == CUresult::CUDA_SUCCESS;
        let State { account, .. } = &*self.state();
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

/// Memory of the driver's pool; freed in the stream's order when dropped.
pub(crate) struct Block {
    pub(crate) address: u64,
    pub(crate) bytes: usize,
    /// Whether it is cut into places.
    pub(crate) is_arena: bool,
    context: Arc<Context>,
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut state = self.context.state();
        state.account.remove(self.bytes);
        // A stream that is being recorded frees nothing: the recorder does so at its end.
        if let Some(freed) = state.recorder.as_mut().and_then(Recorder::freed) {
            freed.push(self.address);
            return;
        }
        drop(state);
        self.context.free(self.address);
    }
}

/// Device memory: a block of its own, or a place in that of a recording.
pub struct CudaMemory {
    address: u64,
    bytes: usize,
    /// `None` if there are no bytes.
    block: Option<Arc<Block>>,
    /// Where it lies, or in a rehearsal would lie, in a recording.
    _place: Option<Place>,
    context: Arc<Context>,
}

impl CudaMemory {
    /// The device address of the first byte; 0 if there are none. For work on the device: a recording that is under way keeps the memory.
    pub fn address(&self) -> u64 {
        if self.context.capturing.load(Ordering::Acquire)
            && let Some(block) = self.block.as_ref().filter(|block| !block.is_arena)
            && let Some(recorder) = &mut self.context.state().recorder
        {
            recorder.keep(block);
        }
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
