//! [`Arena`]: where allocations lie in one block of memory. Places depend on the order of allocations and frees alone, so that work that
//! is done twice has the same places both times.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Places start at multiples of so many bytes.
const ALIGNMENT: usize = 256;

/// Places in a block of memory that has as many bytes as they need. Cheap to clone; clones are the same arena.
#[derive(Clone, Debug, Default)]
pub struct Arena(Arc<Mutex<Layout>>);

#[derive(Debug, Default)]
struct Layout {
    /// Free bytes between places, by where they begin. Neighbours are joined, and none of them reaches the end.
    holes: BTreeMap<usize, usize>,
    /// Where the last place ends, and where the farthest one has ended.
    end: usize,
    extent: usize,
    /// Places that are taken.
    taken: usize,
}

impl Arena {
    /// An arena without places.
    pub fn new() -> Arena {
        Arena::default()
    }

    /// A place of `bytes` bytes: the smallest hole that has room for them, else the end.
    pub fn place(&self, bytes: usize) -> Place {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        Place { arena: self.clone(), offset: self.layout().take(bytes), bytes }
    }

    /// Bytes that all places so far have needed.
    pub fn extent(&self) -> usize {
        self.layout().extent
    }

    /// Number of places that are taken.
    pub fn taken(&self) -> usize {
        self.layout().taken
    }

    fn layout(&self) -> MutexGuard<'_, Layout> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Layout {
    fn take(&mut self, bytes: usize) -> usize {
        self.taken += 1;
        let fitting =
            self.holes.iter().filter(|&(_, &room)| room >= bytes).min_by_key(|&(&start, &room)| (room, start));
        let Some((&start, &room)) = fitting else {
            let start = self.end;
            self.end += bytes;
            self.extent = self.extent.max(self.end);
            return start;
        };
        self.holes.remove(&start);
        if room > bytes {
            self.holes.insert(start + bytes, room - bytes);
        }
        start
    }

    fn give(&mut self, mut start: usize, bytes: usize) {
        self.taken -= 1;
        let mut end = start + bytes;
        if let Some((&before, &room)) = self.holes.range(..start).next_back()
            && before + room == start
        {
            self.holes.remove(&before);
            start = before;
        }
        if let Some(room) = self.holes.remove(&end) {
            end += room;
        }
        if end == self.end {
            self.end = start;
        } else if end > start {
            self.holes.insert(start, end - start);
        }
    }
}

/// A place in an [`Arena`], free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    arena: Arena,
    offset: usize,
    bytes: usize,
}

impl Place {
    /// Where it begins in the block: a multiple of 256.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.arena.layout().give(self.offset, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_hole_is_taken_and_neighbours_join() {
        let arena = Arena::new();
        let mut places: Vec<Option<Place>> = [1000, 300, 100, 600, 1].map(|bytes| Some(arena.place(bytes))).into();
        let offsets: Vec<usize> = places.iter().flatten().map(Place::offset).collect();
        assert_eq!(offsets, [0, 1024, 1536, 1792, 2560]);
        assert_eq!((arena.extent(), arena.taken()), (2816, 5));
        (places[0], places[1], places[3]) = (None, None, None);
        assert_eq!(arena.place(512).offset(), 1792, "768 bytes behind fit closer than 1536 in front");
        assert_eq!(arena.place(800).offset(), 0);
        assert_eq!(arena.place(1537).offset(), 2816, "no hole is that large");
        places.clear();
        assert_eq!(arena.taken(), 0);
        assert_eq!(arena.place(5000).offset(), 0, "nothing is left of what was");
        assert_eq!(arena.extent(), 5120);
    }

    #[test]
    fn the_same_work_has_the_same_places_and_live_ones_never_overlap() {
        let walk = || {
            let arena = Arena::new();
            let mut state = 7u64;
            let mut live: Vec<Place> = Vec::new();
            let mut offsets = Vec::new();
            for _ in 0..if cfg!(miri) { 100 } else { 2000 } {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let random = (state >> 33) as usize;
                if live.len() > 40 || (!live.is_empty() && random.is_multiple_of(3)) {
                    live.swap_remove(random % live.len());
                    continue;
                }
                let place = arena.place(random % 5000);
                let apart = |other: &Place| {
                    place.offset + place.bytes <= other.offset || other.offset + other.bytes <= place.offset
                };
                assert!(live.iter().all(apart));
                offsets.push(place.offset);
                live.push(place);
            }
            (offsets, arena.extent())
        };
        assert_eq!(walk(), walk());
    }
}
