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
    unsafe { map_at(isa, accumulate, length, [out.as_mut_ptr()], x.map(<[F]>::as_ptr), |x| [f(x)]) };
}

/// [`map`] for rows of `length` values that begin at these addresses, inputs stored in A and outputs in B. An output may be an input.
///
/// # Safety
/// The values are valid for reads, those of outputs for reads and writes; an output is an input, or overlaps none and no other output.
#[inline(always)]
pub(super) unsafe fn map_at<F: Float, A: Stored<F>, B: Stored<F>, I: Isa, const IN: usize, const OUT: usize>(
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

/// [`map_at`] for a strip.
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

#[cfg(test)]
mod tests {
    use super::super::isa::{Kernel, available, dispatch_bf16_on};
    use super::*;
    use half::bf16;

    /// Lengths of whole strips, of less than one, and of some and a part.
    const LENGTHS: [usize; 5] = [0, 1, STRIP, STRIP + 1, 3 * STRIP - 1];

    /// Small whole numbers, so that every sum and product of two is exact in bf16.
    fn numbers(length: usize, seed: usize) -> Vec<bf16> {
        (0..length).map(|i| bf16::from_f32(((i * 7 + seed) % 13) as f32 - 6.0)).collect()
    }

    /// `outs (+)= (a + b, a - b)`.
    struct Both<'a> {
        accumulate: bool,
        outs: [&'a mut [bf16]; 2],
        x: [&'a [bf16]; 2],
    }

    impl Kernel for Both<'_> {
        type Output = ();

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) {
            map(isa, self.accumulate, self.outs, self.x, |[a, b]: [f32; 2]| [a + b, a - b]);
        }
    }

    #[test]
    fn every_value_of_a_row_is_computed_and_no_other() {
        for path in available() {
            for (length, accumulate) in LENGTHS.into_iter().flat_map(|length| [(length, false), (length, true)]) {
                let (a, b) = (numbers(length, 1), numbers(length, 5));
                let mut outs = [numbers(length + 1, 2), numbers(length + 1, 3)];
                let before = outs.clone();
                let [sum, difference] = &mut outs;
                let kernel = Both { accumulate, outs: [&mut sum[..length], &mut difference[..length]], x: [&a, &b] };
                dispatch_bf16_on(path, kernel);
                for i in 0..=length {
                    let (a, b) = if i < length { (a[i].to_f32(), b[i].to_f32()) } else { (0.0, 0.0) };
                    for (j, value) in [a + b, a - b].into_iter().enumerate() {
                        let held = if accumulate || i == length { before[j][i].to_f32() } else { 0.0 };
                        assert_eq!(outs[j][i].to_f32(), value + held, "{path:?}, {length}, output {j}, value {i}");
                    }
                }
            }
        }
    }

    /// `x += 2 x` in place, and sums of x.
    struct InPlace<'a> {
        x: &'a mut [bf16],
        sums: &'a mut [f32],
    }

    impl Kernel for InPlace<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> Vec<f32> {
            let InPlace { x, sums } = self;
            let (at, length) = (x.as_mut_ptr(), x.len());
            // SAFETY: as many values; the output is the input.
            unsafe { map_at(isa, true, length, [at], [at.cast_const()], |[x]: [f32; 1]| [x + x]) };
            add(isa, sums, x);
            let mut buffer = vec![0.0; length];
            let mut doubled = vec![0f32; length];
            map_wide(isa, false, &mut doubled, [wide(isa, x, &mut buffer), sums], |[x, sum]: [f32; 2]| x + sum);
            doubled
        }
    }

    #[test]
    fn rows_are_changed_in_place_added_up_and_widened() {
        for path in available() {
            for length in LENGTHS {
                let before = numbers(length, 4);
                let (mut x, mut sums) = (before.clone(), vec![100.0; length]);
                let doubled = dispatch_bf16_on(path, InPlace { x: &mut x, sums: &mut sums });
                for i in 0..length {
                    let tripled = 3.0 * before[i].to_f32();
                    assert_eq!((x[i].to_f32(), sums[i]), (tripled, 100.0 + tripled), "{path:?}, {length}, value {i}");
                    assert_eq!(doubled[i], 100.0 + 2.0 * tripled, "{path:?}, {length}, value {i}");
                }
            }
        }
    }
}
