//! Writing what is too large to be found in a cache when it is read next: past the caches, since an ordinary store first reads the line that it
//! writes. That adds half to the traffic of an op that writes as much as it reads, and doubles that of filling with a constant.

use super::peak::last_level_cache;
use bytemuck::Pod;
use std::sync::OnceLock;

/// Whether a tensor of `bytes` bytes is written past the caches: it has more than a last-level cache keeps until all of it is written. That is taken to be a quarter of
/// the cache: an op reads at least as much meanwhile, and others use the cache too. (In some processes, storing 12 MB as usual beside a cache of 32 MiB took more than
/// twice as long.)
pub(super) fn is_large(bytes: usize) -> bool {
    static CACHE: OnceLock<usize> = OnceLock::new();
    bytes >= *CACHE.get_or_init(last_level_cache) / 4
}

/// Sets every element of `to`, a part of a tensor of `bytes` bytes.
pub(super) fn fill<E: Pod>(to: &mut [E], value: E, bytes: usize) {
    if is_large(bytes) { fill_past_caches(to, value) } else { to.fill(value) }
}

/// How a task writes parts of an output: where they belong, or, if the tensor is large, in a cache, from where they go past the others.
///
/// A task drops its writer when all is written, which makes it visible to other threads.
pub(super) struct Writer<E> {
    /// Where parts of a large tensor are made.
    made: Option<Vec<E>>,
}

impl<E: Pod> Writer<E> {
    /// For a tensor of `len` elements. What is added to the tensor, if `accumulate`, is written where it belongs.
    pub(super) fn new(len: usize, accumulate: bool) -> Self {
        Self::past_caches(!accumulate && is_large(len * size_of::<E>()))
    }

    fn past_caches(yes: bool) -> Self {
        Writer { made: yes.then(Vec::new) }
    }

    /// Lets `make` write the part `to`, all of it; it finds there what the output holds only if it adds to it.
    #[inline]
    pub(super) fn write<T>(&mut self, to: &mut [E], make: impl FnOnce(&mut [E]) -> T) -> T {
        let result = make(self.begin(to));
        self.end(to);
        result
    }

    /// Where to make the part `to`, before [`Writer::end`].
    #[inline]
    pub(super) fn begin<'p>(&'p mut self, to: &'p mut [E]) -> &'p mut [E] {
        let Some(made) = &mut self.made else { return to };
        made.resize(made.len().max(to.len()), E::zeroed());
        &mut made[..to.len()]
    }

    /// The part `to` has been made.
    #[inline]
    pub(super) fn end(&mut self, to: &mut [E]) {
        if let Some(made) = &self.made {
            copy_past_caches(to, &made[..to.len()]);
        }
    }
}

impl<E> Drop for Writer<E> {
    fn drop(&mut self) {
        if self.made.is_some() {
            fence();
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
use x86::{copy_past_caches, fill_past_caches};
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(super) use x86::{fence, has_put, put};

/// With stores that do not read what they write; [`fence`] makes them visible.
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    use super::super::isa::Isa;
    use bytemuck::Pod;
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    use std::arch::x86_64::{_mm256_loadu_si256, _mm256_stream_si256, _mm512_loadu_si512, _mm512_stream_si512};

    const BYTES: usize = size_of::<__m128i>();

    /// Elements before the first address that a vector of them may be stored to, and of whole vectors from there on.
    fn head_and_vectors<E>(to: &[E]) -> (usize, usize) {
        let head = to.as_ptr().align_offset(BYTES).min(to.len());
        let per_vector = BYTES / size_of::<E>();
        (head, (to.len() - head) / per_vector * per_vector)
    }

    /// Stores at the vectors of `to` what is loaded from `from(element)`.
    ///
    /// # Safety
    /// `to` begins at a multiple of [`BYTES`] and is made of whole vectors; `from` gives addresses that a vector can be read at.
    #[inline(always)]
    unsafe fn stream<E>(to: &mut [E], from: impl Fn(usize) -> *const E) {
        for place in (0..to.len()).step_by(BYTES / size_of::<E>()) {
            // SAFETY: SSE2 is in the baseline of x86-64; the rest is the caller's promise.
            unsafe { _mm_stream_si128(to.as_mut_ptr().add(place).cast(), _mm_loadu_si128(from(place).cast())) };
        }
    }

    pub(super) fn fill_past_caches<E: Pod>(to: &mut [E], value: E) {
        let (head, vectors) = head_and_vectors(to);
        let (first, rest) = to.split_at_mut(head);
        let (vectors, last) = rest.split_at_mut(vectors);
        first.fill(value);
        last.fill(value);
        let pattern = vec![value; BYTES / size_of::<E>()];
        // SAFETY: parts that `head_and_vectors` tells; the pattern has the bytes of a vector.
        unsafe { stream(vectors, |_| pattern.as_ptr()) };
        fence();
    }

    pub(super) fn copy_past_caches<E: Pod>(to: &mut [E], from: &[E]) {
        assert_eq!(to.len(), from.len());
        let (head, vectors) = head_and_vectors(to);
        let (first, rest) = to.split_at_mut(head);
        let (vectors, last) = rest.split_at_mut(vectors);
        first.copy_from_slice(&from[..head]);
        last.copy_from_slice(&from[head + vectors.len()..]);
        // SAFETY: parts that `head_and_vectors` tells; `from` has as many elements as `to`.
        unsafe { stream(vectors, |place| from.as_ptr().add(head + place)) };
    }

    /// Whether [`put`] goes past the caches on a path; where it does not it stores as usual.
    pub(in crate::cpu) const fn has_put<I: Isa>() -> bool {
        I::LANES >= 8
    }

    /// Stores whole cache lines past the caches.
    ///
    /// # Safety
    /// `to` is valid for writes and begins at a multiple of the size of a vector register.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn put<I: Isa, E: Pod, const N: usize>(_: I, values: &[E; N], to: *mut [E; N]) {
        let (from, to, bytes) = (values.as_ptr().cast::<u8>(), to.cast::<u8>(), size_of::<[E; N]>());
        // SAFETY: the token exists only where the path's instructions do; the rest is the caller's promise.
        unsafe {
            match I::LANES {
                16 if bytes.is_multiple_of(64) => {
                    for at in (0..bytes).step_by(64) {
                        _mm512_stream_si512(to.add(at).cast(), _mm512_loadu_si512(from.add(at).cast()));
                    }
                }
                8 if bytes.is_multiple_of(32) => {
                    for at in (0..bytes).step_by(32) {
                        _mm256_stream_si256(to.add(at).cast(), _mm256_loadu_si256(from.add(at).cast()));
                    }
                }
                _ => to.cast::<[E; N]>().write(*values),
            }
        }
    }

    /// Makes what went past the caches visible to other threads, once they know of it.
    pub(in crate::cpu) fn fence() {
        // SAFETY: SSE is in the baseline of x86-64.
        unsafe { _mm_sfence() }
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
use elsewhere::{copy_past_caches, fill_past_caches};
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
pub(super) use elsewhere::{fence, has_put, put};

/// With ordinary stores.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
mod elsewhere {
    pub(in crate::cpu) const fn has_put<I>() -> bool {
        false
    }

    pub(super) fn fill_past_caches<E: Copy>(to: &mut [E], value: E) {
        to.fill(value);
    }

    pub(super) fn copy_past_caches<E: Copy>(to: &mut [E], from: &[E]) {
        to.copy_from_slice(from);
    }

    /// # Safety
    /// `to` is valid for writes.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn put<I, E: Copy, const N: usize>(_: I, values: &[E; N], to: *mut [E; N]) {
        // SAFETY: the caller's promise.
        unsafe { to.write(*values) }
    }

    pub(in crate::cpu) fn fence() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Elements `start..length` of `new`, written by `write` over `old`, and no others.
    fn check<E: Pod + PartialEq + std::fmt::Debug>(old: E, new: &[E], write: impl Fn(&mut [E], &[E])) {
        for length in [0, 1, 3, 15, 16, 17, 100] {
            for start in 0..length.min(20) {
                let mut values = vec![old; length + 1];
                write(&mut values[start..length], &new[start..length]);
                let expected = |i: usize| if (start..length).contains(&i) { new[i] } else { old };
                assert!(
                    values.iter().enumerate().all(|(i, &value)| value == expected(i)),
                    "{start}..{length}: {values:?}"
                );
            }
        }
    }

    fn check_all<E: Pod + PartialEq + std::fmt::Debug>(old: E, new: impl Fn(usize) -> E) {
        let values: Vec<E> = (0..100).map(&new).collect();
        for past_caches in [false, true] {
            check(old, &values, |to, from| {
                let mut writer = Writer::past_caches(past_caches);
                let (first, second) = to.split_at_mut(to.len() / 3);
                writer.write(second, |made| made.copy_from_slice(&from[first.len()..]));
                assert_eq!(
                    writer.write(first, |made| {
                        made.copy_from_slice(&from[..made.len()]);
                        made.len()
                    }),
                    first.len()
                );
            });
        }
        let constant = vec![new(7); 100];
        check(old, &constant, |to, from| fill(to, from.first().copied().unwrap_or(old), 0));
        check(old, &constant, |to, from| fill(to, from.first().copied().unwrap_or(old), usize::MAX));
    }

    #[test]
    fn every_element_is_written_and_no_other() {
        check_all(0u8, |i| i as u8 + 1);
        check_all(1u16, |i| 513 + i as u16);
        check_all(1.5f32, |i| i as f32 - 0.25);
        check_all(1.5f64, |i| f64::MAX / (i + 1) as f64);
    }

    #[test]
    fn what_is_added_to_is_written_where_it_belongs() {
        let mut sums = [1.0f32; 4];
        Writer::new(usize::MAX / 4, true).write(&mut sums, |sums| sums.iter_mut().for_each(|sum| *sum += 2.0));
        assert_eq!(sums, [3.0; 4]);
    }
}
