//! Memory of a thread for what its tasks pack and sum, kept from call to call.

use super::math::Float;
use super::memory::{ALIGNMENT, Block};
use std::cell::Cell;
use std::marker::PhantomData;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

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

    /// Parts of so many values, each from a cache line on, of a buffer with room for [`in_parts`].
    pub(super) fn parts<const N: usize>(&mut self, lengths: [usize; N]) -> [&mut [F]; N] {
        let mut rest = self.values();
        lengths.map(|length| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(whole_lines::<F>(length));
            rest = others;
            &mut part[..length]
        })
    }

    pub(super) fn give_back(self, place: &'static Place) {
        place.set(Some(self.block));
    }
}

/// Values of whole cache lines that hold so many.
fn whole_lines<F>(length: usize) -> usize {
    length.next_multiple_of(LINE / size_of::<F>())
}

/// Room for parts of so many values.
pub(super) fn in_parts<F, const N: usize>(lengths: [usize; N]) -> usize {
    lengths.map(whole_lines::<F>).into_iter().sum()
}

/// A buffer of which tasks write parts.
pub(super) struct Parts<F>(*mut F);

// SAFETY: each task writes parts of its own.
unsafe impl<F: Send> Sync for Parts<F> {}

impl<F> Parts<F> {
    pub(super) fn of(values: &mut [F]) -> Self {
        Parts(values.as_mut_ptr())
    }

    /// The address of a value.
    pub(super) fn at(&self, place: usize) -> *mut F {
        self.0.wrapping_add(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_begin_at_lines_and_do_not_overlap() {
        let lengths = [3, 0, 16, 17];
        let mut buffer = Buffer::<f32>::take(&OWN, in_parts::<f32, _>(lengths));
        let parts = buffer.parts(lengths);
        let places = parts.each_ref().map(|part| part.as_ptr() as usize);
        assert!(parts.iter().zip(lengths).all(|(part, length)| part.len() == length));
        assert!(places.iter().all(|place| place.is_multiple_of(LINE)));
        assert!((1..4).all(|i| places[i] >= places[i - 1] + lengths[i - 1] * size_of::<f32>()));
        buffer.give_back(&OWN);
    }
}
