//! Memory of the CPU backend: aligned blocks, kept for reuse when freed. Kernels reach them through [`Access`](super::access::Access).
//!
//! Giving blocks back to the system and faulting them in again costs a training step more than its arithmetic on small models, so freed blocks wait in
//! size classes. A block is zeroed when it is first made and never holds uninitialised bytes. Large ones lie on huge pages of their own where the system
//! has them: a product walks over more small pages than a processor remembers the places of.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use crate::{Error, Memory, Result};

/// Blocks start at multiples of this many bytes: a whole number of cache lines and of vector registers.
pub(crate) const ALIGNMENT: usize = 256;
/// Size and alignment of a huge page.
const HUGE: usize = 2 << 20;
/// Bytes of a block that has pages of its own.
const LARGE: usize = 2 * HUGE;

/// Freed blocks by size, and counters.
#[derive(Default)]
pub(crate) struct Arena {
    free: Mutex<BTreeMap<usize, Vec<Block>>>,
    held: AtomicUsize,
    peak: AtomicUsize,
}

/// One allocation. Owns its bytes, which are initialised.
pub(super) struct Block {
    pointer: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a Block owns its memory exclusively, as a Box would.
unsafe impl Send for Block {}

impl Block {
    /// A block of `bytes` bytes, more than none; `None` if there is no memory.
    pub(super) fn zeroed(bytes: usize) -> Option<Block> {
        let pointer = if bytes < LARGE { small::zeroed(bytes) } else { large::zeroed(bytes) }?;
        Some(Block { pointer, bytes })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn pointer(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the block was made there with this size, and nobody has its bytes any more.
        unsafe {
            if self.bytes < LARGE {
                small::free(self.pointer, self.bytes)
            } else {
                large::free(self.pointer, self.bytes)
            }
        }
    }
}

/// Blocks from the program's allocator.
mod small {
    use super::ALIGNMENT;
    use std::alloc::{Layout as Allocation, alloc_zeroed, dealloc};
    use std::ptr::NonNull;

    fn allocation(bytes: usize) -> Option<Allocation> {
        Allocation::from_size_align(bytes, ALIGNMENT).ok().filter(|_| bytes > 0)
    }

    /// `bytes` zero bytes, more than none.
    pub(super) fn zeroed(bytes: usize) -> Option<NonNull<u8>> {
        // SAFETY: the size is not zero.
        allocation(bytes).and_then(|allocation| NonNull::new(unsafe { alloc_zeroed(allocation) }))
    }

    /// # Safety
    /// `pointer` came from [`zeroed`] with this size, and nobody uses it any more.
    pub(super) unsafe fn free(pointer: NonNull<u8>, bytes: usize) {
        if let Some(allocation) = allocation(bytes) {
            // SAFETY: the caller's promise.
            unsafe { dealloc(pointer.as_ptr(), allocation) }
        }
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
use small as large;

/// Blocks of pages of their own: an allocator gives out again what was freed to it, which stays in small pages once it has been touched as such.
#[cfg(all(target_os = "linux", not(miri)))]
mod large {
    use super::HUGE;
    use libc::{MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, c_void};
    use std::ptr::NonNull;

    /// `bytes` zero bytes from a multiple of [`HUGE`] on, on huge pages as far as they fill such, if the system has them. Pages get memory when they are first
    /// touched.
    pub(super) fn zeroed(bytes: usize) -> Option<NonNull<u8>> {
        let length = bytes.checked_next_multiple_of(HUGE)?;
        let mapped = length.checked_add(HUGE)?;
        // SAFETY: new memory, wherever the system puts it; what lies outside of a range that begins at a multiple of HUGE is given back, whole pages of it,
        // and the advice changes no content.
        unsafe {
            let access = PROT_READ | PROT_WRITE;
            let first = libc::mmap(std::ptr::null_mut(), mapped, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if first == MAP_FAILED {
                return None;
            }
            let before = first.addr().next_multiple_of(HUGE) - first.addr();
            let start = first.byte_add(before);
            unmap(first, before);
            unmap(start.byte_add(length), HUGE - before);
            libc::madvise(start, bytes / HUGE * HUGE, MADV_HUGEPAGE);
            NonNull::new(start.cast())
        }
    }

    /// # Safety
    /// `pointer` came from [`zeroed`] with this size, and nobody uses it any more.
    pub(super) unsafe fn free(pointer: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { unmap(pointer.as_ptr().cast(), bytes.next_multiple_of(HUGE)) }
    }

    /// # Safety
    /// Pages that were mapped and that nobody uses any more.
    unsafe fn unmap(start: *mut c_void, bytes: usize) {
        if bytes > 0 {
            // SAFETY: the caller's promise. It fails only for ranges that are not of pages.
            unsafe { libc::munmap(start, bytes) };
        }
    }
}

/// Sizes are rounded up to a class, four per power of two, so that a freed block fits the next request of about its size.
pub(crate) fn size_class(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 8).max(ALIGNMENT);
    bytes.max(1).div_ceil(step) * step
}

impl Arena {
    /// Bytes that live tensors hold.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// The most bytes that live tensors have held at one time.
    pub(crate) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    pub(crate) fn allocate(self: &Arc<Self>, bytes: usize, device: &str) -> Result<CpuMemory> {
        let too_large =
            || Error::OutOfMemory { device: device.to_string(), bytes, held: self.held(), detail: String::new() };
        if bytes > isize::MAX as usize / 2 {
            return Err(too_large());
        }
        let class = size_class(bytes);
        let reused = self.free.lock().unwrap_or_else(|e| e.into_inner()).get_mut(&class).and_then(Vec::pop);
        let block = match reused {
            Some(block) => block,
            None => {
                let mut block = Block::zeroed(class);
                if block.is_none() {
                    // Blocks of other sizes may be what is missing.
                    self.free.lock().unwrap_or_else(|e| e.into_inner()).clear();
                    block = Block::zeroed(class);
                }
                block.ok_or_else(too_large)?
            }
        };
        if cfg!(debug_assertions) {
            // All ones is NaN in every floating-point type: an output that a kernel forgets to write is seen.
            // SAFETY: the block has at least `bytes` bytes and no other owner.
            unsafe { std::ptr::write_bytes(block.pointer.as_ptr(), 0xFF, bytes) }
        }
        let held = self.held.fetch_add(class, Ordering::Relaxed) + class;
        self.peak.fetch_max(held, Ordering::Relaxed);
        Ok(CpuMemory { block: Some(block), lock: RwLock::new(()), arena: self.clone() })
    }
}

/// A tensor buffer's bytes on the CPU. Readers and writers take turns by the lock.
pub(crate) struct CpuMemory {
    block: Option<Block>,
    pub(super) lock: RwLock<()>,
    arena: Arc<Arena>,
}

impl Memory for CpuMemory {}

// SAFETY: the bytes are reached only through Access, which holds the lock for reading or for writing.
unsafe impl Sync for CpuMemory {}

impl Drop for CpuMemory {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.arena.held.fetch_sub(block.bytes, Ordering::Relaxed);
            self.arena.free.lock().unwrap_or_else(|e| e.into_inner()).entry(block.bytes).or_default().push(block);
        }
    }
}

impl CpuMemory {
    /// Other memory of the same arena.
    pub(super) fn sibling(&self, bytes: usize) -> Result<CpuMemory> {
        self.arena.allocate(bytes, "cpu")
    }

    pub(super) fn pointer(&self) -> *mut u8 {
        self.block.as_ref().map_or(std::ptr::null_mut(), Block::pointer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_block_serves_the_next_request_of_its_class() -> Result<()> {
        let arena = Arc::<Arena>::default();
        let (first, other) = (arena.allocate(1000, "cpu")?, arena.allocate(5000, "cpu")?);
        assert_eq!((arena.held(), arena.peak()), (1024 + 5120, 1024 + 5120));
        let place = first.pointer();
        drop((first, other));
        assert_eq!((arena.held(), arena.peak()), (0, 1024 + 5120));
        let again = arena.allocate(900, "cpu")?;
        assert_eq!((again.pointer(), arena.held(), arena.peak()), (place, 1024, 1024 + 5120));
        let sibling = again.sibling(900)?;
        assert!(sibling.pointer() != place && arena.held() == 2048);
        Ok(())
    }

    #[test]
    fn a_class_is_whole_cache_lines_and_little_more_than_what_is_asked_for() {
        for bytes in (0..5000).chain([1 << 20, (1 << 20) + 1, 10_000_000, 3 << 30]) {
            let class = size_class(bytes);
            assert!(class >= bytes.max(1) && class.is_multiple_of(ALIGNMENT), "{class} for {bytes}");
            assert!(class - bytes <= (bytes / 4).max(ALIGNMENT), "{class} for {bytes}");
        }
        assert_eq!([1024, 1 << 20, 3 << 20].map(size_class), [1024, 1 << 20, 3 << 20]);
        let mut classes: Vec<usize> = (1 << 20..=2 << 20).step_by(4096).map(size_class).collect();
        classes.dedup();
        assert_eq!(classes.len(), 5, "{classes:?}");
    }

    #[test]
    fn blocks_are_zero_and_aligned_and_large_ones_fill_huge_pages() {
        const LARGE_ALIGNMENT: usize = if cfg!(all(target_os = "linux", not(miri))) { HUGE } else { ALIGNMENT };
        assert!(Block::zeroed(0).is_none() && Block::zeroed(usize::MAX).is_none());
        for (bytes, alignment) in
            [(1, ALIGNMENT), (3 * ALIGNMENT, ALIGNMENT), (LARGE, LARGE_ALIGNMENT), (LARGE + 1, LARGE_ALIGNMENT)]
        {
            let block = Block::zeroed(bytes).expect("memory");
            assert_eq!((block.bytes(), block.pointer() as usize % alignment), (bytes, 0));
            // SAFETY: the block has so many initialised bytes, and nobody writes them.
            let values = unsafe { std::slice::from_raw_parts(block.pointer(), bytes) };
            assert!(values.iter().step_by(if cfg!(miri) { 4093 } else { 1 }).all(|byte| *byte == 0));
        }
    }

    #[test]
    fn more_than_any_memory_is_an_error_that_says_how_much() {
        let arena = Arc::<Arena>::default();
        for bytes in [usize::MAX, isize::MAX as usize / 2 + 1] {
            let message = arena.allocate(bytes, "a device").err().expect("too much").to_string();
            assert!(message.contains("a device") && arena.held() == 0, "{message}");
        }
    }
}
