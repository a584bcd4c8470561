//! Memory of the CPU backend: aligned blocks, kept for reuse when freed. Kernels reach them through [`Access`](super::access::Access).
//!
//! Giving blocks back to the system and faulting them in again costs a training step more than its arithmetic on small models, so freed blocks wait in
//! size classes. A block is zeroed when it is first made and never holds uninitialised bytes. Large ones lie on huge pages where the system
//! has them: a product walks over more small pages than a processor remembers the places of.

use std::alloc::{Layout as Allocation, alloc, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use crate::{Error, Memory, Result};

/// Blocks start at multiples of this many bytes: a whole number of cache lines and of vector registers.
pub(crate) const ALIGNMENT: usize = 256;
/// Size and alignment of a huge page.
const HUGE: usize = 2 << 20;

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
    fn allocation(bytes: usize) -> Option<Allocation> {
        Allocation::from_size_align(bytes, if bytes < 2 * HUGE { ALIGNMENT } else { HUGE }).ok()
    }

    /// A block of `bytes` bytes, more than none; `None` if there is no memory.
    pub(super) fn zeroed(bytes: usize) -> Option<Block> {
        let allocation = Block::allocation(bytes).filter(|_| bytes > 0)?;
        // SAFETY: the size is not zero.
        let pointer = NonNull::new(unsafe { alloc(allocation) })?;
        if allocation.align() == HUGE {
            // SAFETY: whole pages inside the block, which nobody reads yet.
            unsafe { advise_huge(pointer.as_ptr(), bytes / HUGE * HUGE) };
        }
        // SAFETY: the block was just allocated with this size.
        unsafe { std::ptr::write_bytes(pointer.as_ptr(), 0, bytes) };
        Some(Block { pointer, bytes })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn pointer(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }
}

/// Asks for huge pages; a system that has none leaves the memory as it is.
///
/// # Safety
/// `bytes` bytes from `start` on, both multiples of [`HUGE`], belong to the caller.
unsafe fn advise_huge(start: *mut u8, bytes: usize) {
    #[cfg(all(target_os = "linux", not(miri)))]
    // SAFETY: the caller's promise; the advice changes no content.
    let _ = unsafe { libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE) };
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = (start, bytes);
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(allocation) = Block::allocation(self.bytes) {
            // SAFETY: the block was made by alloc with this very layout.
            unsafe { dealloc(self.pointer.as_ptr(), allocation) }
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
        assert!(Block::zeroed(0).is_none());
        for (bytes, alignment) in [(1, ALIGNMENT), (3 * ALIGNMENT, ALIGNMENT), (2 * HUGE, HUGE), (2 * HUGE + 1, HUGE)] {
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
