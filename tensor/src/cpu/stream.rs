//! Writing a constant to memory that is too large to be found in a cache when it is read next: past the caches, since an ordinary store first
//! reads the line that it writes, which doubles the traffic.

use bytemuck::Pod;

/// Bytes from which a tensor is written past the caches: more than a last-level cache keeps until all of it is written.
const LARGE: usize = 32 << 20;

/// Sets every element of `to`, a part of a tensor of `bytes` bytes.
pub(super) fn fill<E: Pod>(to: &mut [E], value: E, bytes: usize) {
    if bytes < LARGE {
        to.fill(value);
    } else {
        past_caches(to, value);
    }
}

/// Sets every element of `to`.
#[cfg(all(target_arch = "x86_64", not(miri)))]
fn past_caches<E: Pod>(to: &mut [E], value: E) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const BYTES: usize = size_of::<__m128i>();

    let per_vector = BYTES / size_of::<E>();
    let head = to.as_ptr().align_offset(BYTES).min(to.len());
    let (head, rest) = to.split_at_mut(head);
    let (vectors, tail) = rest.split_at_mut(rest.len() / per_vector * per_vector);
    head.fill(value);
    tail.fill(value);
    let pattern = vec![value; per_vector];
    // SAFETY: SSE2 is in the baseline of x86-64. The pattern has the bytes of a vector, and so has every chunk, which is aligned like one: they
    // follow each other from a multiple of BYTES on. The fence makes the stores visible before whatever this thread does next.
    unsafe {
        let pattern = _mm_loadu_si128(pattern.as_ptr().cast());
        for vector in vectors.chunks_exact_mut(per_vector) {
            _mm_stream_si128(vector.as_mut_ptr().cast(), pattern);
        }
        _mm_sfence();
    }
}

/// Sets every element of `to`.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn past_caches<E: Pod>(to: &mut [E], value: E) {
    to.fill(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<E: Pod + PartialEq + std::fmt::Debug>(old: E, new: E) {
        for length in [0, 1, 3, 15, 16, 17, 100] {
            for start in 0..length.min(20) {
                for bytes in [0, LARGE] {
                    let mut values = vec![old; length + 1];
                    fill(&mut values[start..length], new, bytes);
                    let set = |i: usize| if (start..length).contains(&i) { new } else { old };
                    assert!(
                        values.iter().enumerate().all(|(i, &value)| value == set(i)),
                        "{start}..{length}: {values:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_element_is_set_and_no_other() {
        check(0u8, 7);
        check(1u16, 513);
        check(1.5f32, -0.25);
        check(1.5f64, f64::MAX);
    }
}
