//! Memory of the CPU backend: aligned blocks, kept for reuse when freed, and checked access to them for kernels.
//!
//! Giving blocks back to the system and faulting them in again costs a training step more than its arithmetic on small models, so freed blocks wait in
//! size classes. A block is zeroed when it is first made and never holds uninitialised bytes.

use std::alloc::{Layout as Allocation, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{Element, Error, Layout, Memory, Result, Tensor};

/// Blocks start at multiples of this many bytes: a whole number of cache lines and of vector registers.
pub(crate) const ALIGNMENT: usize = 256;

/// Freed blocks by size, and counters.
#[derive(Default)]
pub(crate) struct Arena {
    free: Mutex<BTreeMap<usize, Vec<Block>>>,
    held: AtomicUsize,
    peak: AtomicUsize,
}

/// One allocation. Owns its bytes.
struct Block {
    pointer: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a Block owns its memory exclusively, as a Box would.
unsafe impl Send for Block {}

impl Block {
    fn allocation(bytes: usize) -> Option<Allocation> {
        Allocation::from_size_align(bytes, ALIGNMENT).ok()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(allocation) = Block::allocation(self.bytes) {
            // SAFETY: the block was made by alloc_zeroed with this very layout.
            unsafe { dealloc(self.pointer.as_ptr(), allocation) }
        }
    }
}

/// Sizes are rounded up to a class, eight per power of two, so that a freed block fits the next request of about its size.
fn size_class(bytes: usize) -> usize {
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
        let too_large = || Error::OutOfMemory { device: device.to_string(), bytes, held: self.held() };
        if bytes > isize::MAX as usize / 2 {
            return Err(too_large());
        }
        let class = size_class(bytes);
        let reused = self.free.lock().unwrap_or_else(|e| e.into_inner()).get_mut(&class).and_then(Vec::pop);
        let block = match reused {
            Some(block) => block,
            None => {
                let allocation = Block::allocation(class).ok_or_else(too_large)?;
                // SAFETY: the size is not zero: a class is at least ALIGNMENT.
                let mut pointer = NonNull::new(unsafe { alloc_zeroed(allocation) });
                if pointer.is_none() {
                    // Blocks of other sizes may be what is missing.
                    self.free.lock().unwrap_or_else(|e| e.into_inner()).clear();
                    // SAFETY: as above.
                    pointer = NonNull::new(unsafe { alloc_zeroed(allocation) });
                }
                Block { pointer: pointer.ok_or_else(too_large)?, bytes: class }
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
    lock: RwLock<()>,
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
    fn pointer(&self) -> *mut u8 {
        self.block.as_ref().map_or(std::ptr::null_mut(), |b| b.pointer.as_ptr())
    }
}

enum Guard<'a> {
    Read { _guard: RwLockReadGuard<'a, ()> },
    Write { _guard: RwLockWriteGuard<'a, ()> },
}

/// The locks that one op holds on the buffers of its inputs and outputs.
///
/// Locks are taken once per buffer, in the order of their addresses, so that ops on several threads cannot wait for each other in a circle.
pub(crate) struct Access<'a> {
    guards: Vec<Guard<'a>>,
}

/// What an op may do to a tensor.
#[derive(Clone, Copy, PartialEq)]
enum Use {
    Read,
    Write,
}

impl<'a> Access<'a> {
    /// Locks the buffers of `inputs` for reading and those of `outputs` for writing.
    ///
    /// # Errors
    /// A tensor that does not live on a CPU; an output that overlaps another output or an input, unless input and output have
    /// the very same layout and dtype (an element-wise op in place, which the frontends admit where the contract allows it).
    pub(crate) fn new(op: &'static str, inputs: &[&'a Tensor], outputs: &[&'a Tensor]) -> Result<Access<'a>> {
        for (i, out) in outputs.iter().enumerate() {
            let clash = |other: &Tensor, same_is_fine: bool| {
                std::ptr::eq(&**out.buffer(), &**other.buffer())
                    && !(same_is_fine && out.layout() == other.layout())
                    && ranges_meet(out.layout(), other.layout())
            };
            if inputs.iter().any(|x| clash(x, true)) || outputs[..i].iter().any(|o| clash(o, false)) {
                return Err(Error::Overlap { op });
            }
        }
        let mut wanted: Vec<(&'a CpuMemory, Use)> = Vec::with_capacity(inputs.len() + outputs.len());
        for (tensors, usage) in [(inputs, Use::Read), (outputs, Use::Write)] {
            for tensor in tensors {
                let memory = memory_of(op, tensor)?;
                match wanted.iter_mut().find(|(m, _)| std::ptr::eq(*m, memory)) {
                    Some((_, held)) if usage == Use::Write => *held = Use::Write,
                    Some(_) => {}
                    None => wanted.push((memory, usage)),
                }
            }
        }
        wanted.sort_by_key(|(m, _)| std::ptr::from_ref::<CpuMemory>(m) as usize);
        let guards = wanted
            .into_iter()
            .map(|(memory, usage)| match usage {
                Use::Read => Guard::Read { _guard: memory.lock.read().unwrap_or_else(|e| e.into_inner()) },
                Use::Write => Guard::Write { _guard: memory.lock.write().unwrap_or_else(|e| e.into_inner()) },
            })
            .collect();
        Ok(Access { guards })
    }

    /// The elements of an input. The view must not outlive the access.
    pub(crate) fn view<'s, E: Element>(&'s self, tensor: &'s Tensor) -> Result<View<'s, E>> {
        debug_assert!(!self.guards.is_empty());
        Ok(View { pointer: typed::<E>(tensor)?, layout: *tensor.layout(), elements: PhantomData })
    }

    /// The elements of an output.
    pub(crate) fn view_mut<'s, E: Element>(&'s self, tensor: &'s Tensor) -> Result<ViewMut<'s, E>> {
        debug_assert!(self.guards.iter().any(|g| matches!(g, Guard::Write { .. })));
        Ok(ViewMut { pointer: typed::<E>(tensor)?, layout: *tensor.layout(), elements: PhantomData })
    }
}

/// Whether two layouts over one buffer can share an element: judged by their spans and, for column slices of one matrix, by their
/// columns. May say yes of exotic layouts that do not.
fn ranges_meet(a: &Layout, b: &Layout) -> bool {
    let (x, y) = (a.span(), b.span());
    if x.start >= y.end || y.start >= x.end {
        return false;
    }
    // [(rows, pitch), (width, 1)] on both sides, the same pitch: intervals of columns modulo the pitch.
    let (p, q) = (collapsed(a), collapsed(b));
    if let (&[(_, pitch), (w, 1)], &[(_, other), (v, 1)]) = (&p[..], &q[..])
        && pitch == other
    {
        let (i, j) = (a.offset() % pitch, b.offset() % pitch);
        return i + w > pitch || j + v > pitch || (i < j + v && j < i + w);
    }
    true
}

/// (size, stride) of the dimensions, those of size 1 left out and neighbours joined where one continues the other.
fn collapsed(layout: &Layout) -> Vec<(usize, usize)> {
    let mut dims: Vec<(usize, usize)> = Vec::with_capacity(layout.rank());
    for (&size, &stride) in layout.shape().iter().zip(layout.strides()).filter(|(size, _)| **size != 1) {
        match dims.last_mut() {
            Some((joined, inner)) if *inner == stride * size => (*joined, *inner) = (*joined * size, stride),
            _ => dims.push((size, stride)),
        }
    }
    dims
}

fn memory_of<'a>(op: &'static str, tensor: &'a Tensor) -> Result<&'a CpuMemory> {
    tensor.buffer().memory::<CpuMemory>().ok_or_else(|| Error::Device {
        op,
        first: "cpu".into(),
        second: tensor.device().to_string(),
    })
}

fn typed<E: Element>(tensor: &Tensor) -> Result<*mut E> {
    if tensor.dtype() != E::DTYPE {
        return Err(Error::dtype("access", E::DTYPE, tensor.dtype()));
    }
    Ok(memory_of("access", tensor)?.pointer().cast::<E>())
}

/// A readable strided view.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, E> {
    pointer: *mut E,
    layout: Layout,
    elements: PhantomData<&'a E>,
}

/// A writable strided view, shared by the tasks of a kernel, each of which writes elements of its own.
#[derive(Clone, Copy)]
pub(crate) struct ViewMut<'a, E> {
    pointer: *mut E,
    layout: Layout,
    elements: PhantomData<&'a E>,
}

// SAFETY: a View only reads, under the read lock that its Access holds.
unsafe impl<E: Element> Send for View<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Element> Sync for View<'_, E> {}
// SAFETY: writes go through unsafe methods whose callers promise disjoint elements.
unsafe impl<E: Element> Send for ViewMut<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Element> Sync for ViewMut<'_, E> {}

impl<'a, E: Element> View<'a, E> {
    /// Shape, strides and offset.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Address of the element at `offset` elements from the start of the buffer.
    pub(crate) fn at(&self, offset: usize) -> *const E {
        // SAFETY: callers pass offsets within the view's span, which lies inside the allocation.
        unsafe { self.pointer.add(offset) }
    }

    /// Number of rows: the product of all dimensions but the last.
    pub(crate) fn rows(&self) -> usize {
        leading(&self.layout)
    }

    /// Row number `i` in row-major order; the last dimension must be contiguous in memory.
    pub(crate) fn row(&self, i: usize) -> &'a [E] {
        let (offset, width) = row_of(&self.layout, i);
        // SAFETY: the row lies within the view's span; the memory is initialised and locked for reading.
        unsafe { std::slice::from_raw_parts(self.pointer.add(offset), width) }
    }

    /// All elements of a contiguous view.
    pub(crate) fn slice(&self) -> &'a [E] {
        assert!(self.layout.is_contiguous(), "slice of a strided view");
        // SAFETY: contiguous, inside the allocation, initialised and locked for reading.
        unsafe { std::slice::from_raw_parts(self.pointer.add(self.layout.offset()), self.layout.len()) }
    }
}

impl<'a, E: Element> ViewMut<'a, E> {
    /// Shape, strides and offset.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Address of the element at `offset` elements from the start of the buffer.
    pub(crate) fn at(&self, offset: usize) -> *mut E {
        // SAFETY: callers pass offsets within the view's span, which lies inside the allocation.
        unsafe { self.pointer.add(offset) }
    }

    /// Number of rows: the product of all dimensions but the last.
    pub(crate) fn rows(&self) -> usize {
        leading(&self.layout)
    }

    /// Row number `i` in row-major order; the last dimension must be contiguous in memory.
    ///
    /// # Safety
    /// No other reference to the row's elements may be alive: tasks write rows of their own, and where an op works in place (its
    /// input is the same view, see [`ViewMut::is_same`]) it reads the row through this slice and not through the input's.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn row(&self, i: usize) -> &'a mut [E] {
        let (offset, width) = row_of(&self.layout, i);
        // SAFETY: inside the allocation, initialised, locked for writing; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(offset), width) }
    }

    /// Whether `input` is the very same view of the very same memory: the op works in place.
    pub(crate) fn is_same(&self, input: &View<'_, E>) -> bool {
        self.pointer == input.pointer && self.layout == input.layout
    }

    /// Elements `range` of a contiguous view.
    ///
    /// # Safety
    /// As [`ViewMut::row`].
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, range: std::ops::Range<usize>) -> &'a mut [E] {
        assert!(
            self.layout.is_contiguous() && range.start <= range.end && range.end <= self.layout.len(),
            "slice {range:?} of {:?}",
            self.layout
        );
        // SAFETY: contiguous, inside the allocation, initialised, locked for writing; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(self.layout.offset() + range.start), range.len()) }
    }
}

fn leading(layout: &Layout) -> usize {
    let shape = layout.shape();
    shape[..shape.len().saturating_sub(1)].iter().product()
}

fn row_of(layout: &Layout, mut i: usize) -> (usize, usize) {
    let rank = layout.rank();
    if rank == 0 {
        return (layout.offset(), 1);
    }
    let mut offset = layout.offset();
    for d in (0..rank - 1).rev() {
        offset += (i % layout.shape()[d]) * layout.strides()[d];
        i /= layout.shape()[d];
    }
    assert!(i == 0 && layout.has_contiguous_rows(), "row of {layout:?}");
    (offset, layout.shape()[rank - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_slices_of_one_matrix_do_not_meet() -> Result<()> {
        // [B, T, (H + 2G) D] as q, k and v.
        let joined = Layout::contiguous(&[2, 3, 8, 4])?;
        let (q, k, v) = (joined.narrow(2, 0, 4)?, joined.narrow(2, 4, 2)?, joined.narrow(2, 6, 2)?);
        assert!(!ranges_meet(&q, &k) && !ranges_meet(&k, &v) && !ranges_meet(&q, &v));
        assert!(ranges_meet(&q, &joined) && ranges_meet(&k, &joined.narrow(2, 5, 2)?));
        assert!(ranges_meet(&joined.narrow(2, 3, 2)?, &q));
        assert!(!ranges_meet(&joined.narrow(0, 0, 1)?, &joined.narrow(0, 1, 1)?));
        Ok(())
    }
}
