//! Element-wise loops over rows in the type in which they are stored: strips of them are widened, computed with and rounded in registers, so that what is
//! stored in bf16 passes through no buffer.

use super::isa::Isa;
use super::math::Float;
use super::stored::Stored;

/// Values of a strip: four vectors of the widest path, so that loads are under way while others are computed with.
const STRIP: usize = 64;

/// `outs[j][i] (+)= f(x[0][i], x[1][i], ..)[j]` for rows of one length.
///
/// Mark what `f` calls `#[inline(always)]`. It is called in one place, whole strip or not, so that it is inlined too and compiled for the path.
#[inline(always)]
pub(super) fn map<F: Float, S: Stored<F>, I: Isa, const IN: usize, const OUT: usize>(
    isa: I,
    accumulate: bool,
    outs: [&mut [S]; OUT],
    x: [&[S]; IN],
    f: impl Fn([F; IN]) -> [F; OUT],
) {
    let length = x[0].len();
    assert!(outs.iter().all(|out| out.len() == length) && x.iter().all(|x| x.len() == length), "rows of one length");
    // SAFETY: as many values, borrowed for the call.
    unsafe { map_at(isa, accumulate, length, outs.map(<[S]>::as_mut_ptr), x.map(<[S]>::as_ptr), f) };
}

/// `out[i] (+)= f(x[0][i], x[1][i], ..)` for rows of one length that were computed and one that is stored.
#[inline(always)]
pub(super) fn map_wide<F: Float, S: Stored<F>, I: Isa, const IN: usize>(
    isa: I,
    accumulate: bool,
    out: &mut [S],
    x: [&[F]; IN],
    f: impl Fn([F; IN]) -> F,
) {
    let length = out.len();
    assert!(x.iter().all(|x| x.len() == length), "rows of one length");
    // SAFETY: as many values, borrowed for the call.
    unsafe { strips(isa, accumulate, length, [out.as_mut_ptr()], x.map(<[F]>::as_ptr), |x| [f(x)]) };
}

/// [`map`] for rows of `length` values that begin at these addresses. An output may be an input.
///
/// # Safety
/// The values are valid for reads, those of outputs for reads and writes; an output is an input, or overlaps none and no other output.
#[inline(always)]
pub(super) unsafe fn map_at<F: Float, S: Stored<F>, I: Isa, const IN: usize, const OUT: usize>(
    isa: I,
    accumulate: bool,
    length: usize,
    outs: [*mut S; OUT],
    x: [*const S; IN],
    f: impl Fn([F; IN]) -> [F; OUT],
) {
    // SAFETY: the caller's promise.
    unsafe { strips(isa, accumulate, length, outs, x, f) };
}

/// [`map_at`] for inputs stored in A and outputs stored in B.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn strips<F: Float, A: Stored<F>, B: Stored<F>, I: Isa, const IN: usize, const OUT: usize>(
    isa: I,
    accumulate: bool,
    length: usize,
    outs: [*mut B; OUT],
    x: [*const A; IN],
    f: impl Fn([F; IN]) -> [F; OUT],
) {
    let mut copies = None;
    for place in (0..length).step_by(STRIP) {
        let (mut from, mut to) = (x, outs);
        from.iter_mut().for_each(|from| *from = from.wrapping_add(place));
        to.iter_mut().for_each(|to| *to = to.wrapping_add(place));
        let (ends, count) = (to, STRIP.min(length - place));
        // A last strip that is not whole is completed elsewhere: what follows knows its length.
        if count < STRIP {
            let (inputs, outputs) = copies.insert(([[A::zeroed(); STRIP]; IN], [[B::zeroed(); STRIP]; OUT]));
            for (from, copy) in from.iter_mut().zip(inputs) {
                // SAFETY: the last values of an input, by the caller's promise.
                copy[..count].copy_from_slice(unsafe { std::slice::from_raw_parts(*from, count) });
                *from = copy.as_ptr();
            }
            for (to, copy) in to.iter_mut().zip(outputs) {
                // SAFETY: the last values of an output, by the caller's promise.
                copy[..count].copy_from_slice(unsafe { std::slice::from_raw_parts(*to, count) });
                *to = copy.as_mut_ptr();
            }
        }
        // SAFETY: whole strips of values that the caller promised, or of copies.
        unsafe { strip(isa, accumulate, to, from, &f) };
        if let Some((_, outputs)) = &copies {
            for (end, copy) in ends.into_iter().zip(outputs) {
                // SAFETY: as above.
                unsafe { std::slice::from_raw_parts_mut(end, count) }.copy_from_slice(&copy[..count]);
            }
        }
    }
}

/// [`strips`] for one.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn strip<F: Float, A: Stored<F>, B: Stored<F>, I: Isa, const IN: usize, const OUT: usize>(
    isa: I,
    accumulate: bool,
    outs: [*mut B; OUT],
    x: [*const A; IN],
    f: &impl Fn([F; IN]) -> [F; OUT],
) {
    let mut inputs = [[F::ZERO; STRIP]; IN];
    for (to, from) in inputs.iter_mut().zip(x) {
        // SAFETY: a strip of an input, by the caller's promise.
        *to = A::get(isa, unsafe { &*from.cast::<[A; STRIP]>() });
    }
    let mut results = [[F::ZERO; STRIP]; OUT];
    for i in 0..STRIP {
        let mut values = [F::ZERO; IN];
        for (value, input) in values.iter_mut().zip(&inputs) {
            *value = input[i];
        }
        let values = f(values);
        for (result, value) in results.iter_mut().zip(values) {
            result[i] = value;
        }
    }
    for (result, out) in results.iter_mut().zip(outs) {
        // SAFETY: a strip of an output, by the caller's promise; inputs that it may be were read.
        let out = unsafe { &mut *out.cast::<[B; STRIP]>() };
        if accumulate {
            for (result, before) in result.iter_mut().zip(B::get(isa, out)) {
                *result = before + *result;
            }
        }
        B::put(isa, result, out);
    }
}

/// A row in the type that is computed in: itself, or what `buffer`, of its length, then holds.
#[inline(always)]
pub(super) fn wide<'a, F: Float, S: Stored<F>, I: Isa>(isa: I, x: &'a [S], buffer: &'a mut [F]) -> &'a [F] {
    if let Some(x) = S::as_wide(x) {
        return x;
    }
    let ((to, last), (x, rest)) = (buffer.as_chunks_mut::<STRIP>(), x.as_chunks::<STRIP>());
    for (to, x) in to.iter_mut().zip(x) {
        *to = S::get(isa, x);
    }
    for (to, x) in last.iter_mut().zip(rest) {
        *to = x.wide();
    }
    buffer
}

/// `sums[i] += x[i]` for rows of one length.
#[inline(always)]
pub(super) fn add<F: Float, S: Stored<F>, I: Isa>(isa: I, sums: &mut [F], x: &[S]) {
    let ((sums, last), (x, rest)) = (sums.as_chunks_mut::<STRIP>(), x.as_chunks::<STRIP>());
    for (sums, x) in sums.iter_mut().zip(x) {
        // Times one, which is exact: this is in registers for certain.
        F::axpy(isa, F::ONE, &S::get(isa, x), sums);
    }
    for (sum, x) in last.iter_mut().zip(rest) {
        *sum += x.wide();
    }
}
