//! Memory of a thread for what products pack and sum, kept from call to call.

use super::super::math::Float;
use super::super::memory::{ALIGNMENT, Block};
use std::cell::Cell;
use std::marker::PhantomData;

type Place = std::thread::LocalKey<Cell<Option<Block>>>;

thread_local! {
    /// Packed panels for all tasks of a product that this thread asked for, kept from call to call.
    pub(super) static SHARED: Cell<Option<Block>> = const { Cell::new(None) };
    /// What a task of this thread packs and sums, kept from task to task.
    pub(super) static OWN: Cell<Option<Block>> = const { Cell::new(None) };
}

/// A thread's buffer, taken out while it is used: a product within a product has one of its own.
pub(super) struct Buffer<F> {
    block: Block,
    length: usize,
    of: PhantomData<F>,
}

impl<F: Float> Buffer<F> {
    /// Room for `length` values, with what was left in it.
    pub(super) fn take(place: &'static Place, length: usize) -> Self {
        let bytes = (length * size_of::<F>()).max(1);
        // One that is too small is freed first: what it holds is of no use.
        let block = place.take().filter(|block| block.bytes() >= bytes);
        let block = block.or_else(|| Block::zeroed(bytes.next_multiple_of(ALIGNMENT)));
        let block = block.unwrap_or_else(|| std::alloc::handle_alloc_error(std::alloc::Layout::new::<F>()));
        Buffer { block, length, of: PhantomData }
    }

    pub(super) fn values(&mut self) -> &mut [F] {
        // SAFETY: the block has as many values, aligned and initialised, of a type that any bits are valid for.
        unsafe { std::slice::from_raw_parts_mut(self.block.pointer().cast::<F>(), self.length) }
    }

    pub(super) fn give_back(self, place: &'static Place) {
        place.set(Some(self.block));
    }
}
