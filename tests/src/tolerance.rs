//! How far a result may lie from what it is held against; every tolerance of the suite is derived here.
//!
//! **One op.** A sum of n products in an arithmetic of machine epsilon e, in any order, errs by at most about n * e * sum|a b|; rounding
//! errors of random sign add up to about sqrt(n) * e instead (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2). Results
//! are judged against the largest magnitude of the reference, with a margin for the handful of roundings around the sum.
//!
//! **Magnitudes.** A statistic of size m, such as the log-sum-exp of logits up to m, is rounded by m * e / 2, and so is every probability
//! `e^(x - lse)` computed from it, relatively.
//!
//! **A whole model** is a chain of ops, whose errors add up with random signs, and a gradient passes the chain twice.
//!
//! **Half precision** has no derivation that is both sharp and safe, so it is judged by comparison, as FlashAttention's tests do: the error may
//! be twice that of a plain implementation in the same precision, plus one unit in the last place at the scale of the output.

use patchgpt_tensor::DType;

use crate::array::Array;

/// Roundings outside the longest sum, exponentials of 2 ulp among them.
const ROUNDINGS: f64 = 16.0;

/// The largest admissible difference, relative to the largest magnitude of the reference, for results that contain sums of `reduction`
/// terms and statistics of inputs as large as `magnitude`.
pub fn relative(dtype: DType, reduction: usize, magnitude: f64) -> f64 {
    dtype.epsilon() * (ROUNDINGS + 4.0 * (reduction as f64).sqrt() + magnitude)
}

/// What logits, loss and gradients of a small whole model (a few layers, widths up to a hundred), and its weights after ten optimizer steps, may
/// differ by from another implementation, relative to the largest magnitude of a tensor.
///
/// In f32, 2e-5 is 170 e: some forty ops in a row, there and back, each with a handful of roundings, times the two that clipping and the
/// normalised step add. In f64 the same chain would allow 4e-14; AdamW divides each gradient by its own running magnitude, so an element
/// that is 1e-4 of its tensor's largest carries 1e4 times that.
pub fn whole_model(dtype: DType) -> f64 {
    if dtype == DType::F64 { 1e-9 } else { 2e-5 }
}

/// What the gradients of the same sums taken in another order may differ by in f64: sums of thousands of terms in place of one.
pub const REORDERED: f64 = 1e-12;

/// One unit in the last place of `dtype` at magnitude `scale`.
pub fn ulp(dtype: DType, scale: f64) -> f64 {
    let exponent = if scale > 0.0 { scale.log2().floor() } else { f64::NEG_INFINITY };
    dtype.epsilon() * exponent.exp2()
}

/// Judges a result in half precision: says where it lies further from the `reference` than twice the largest error of `plain`, a plain
/// implementation in the same precision, plus one ulp at the scale of the reference; `None` if nowhere. NaN and infinity must stand where
/// the reference has them, whatever the plain implementation does.
pub fn half_mismatch(got: &Array, plain: &Array, reference: &Array, dtype: DType) -> Option<String> {
    if got.shape != reference.shape || plain.shape != reference.shape {
        return Some(format!("shapes {:?} and plain {:?} instead of {:?}", got.shape, plain.shape, reference.shape));
    }
    let finite = reference.data.iter().filter(|x| x.is_finite());
    let scale = finite.fold(0.0, |m: f64, x| m.max(x.abs()));
    let distance = |(a, b): (&f64, &f64)| if b.is_finite() { (a - b).abs() } else { 0.0 };
    // An error of the plain implementation that is no number allows nothing.
    let plain = plain
        .data
        .iter()
        .zip(&reference.data)
        .map(distance)
        .fold(0.0, |m: f64, e| if e.is_finite() { m.max(e) } else { m });
    worst(got, reference, 2.0 * plain + ulp(dtype, scale))
}

/// Says where `got` differs from `expected` by more than `relative` times the largest magnitude of the reference (at least `floor`: the size
/// of the terms that may cancel); `None` if nowhere. NaN and infinity must stand where the reference has them.
pub fn mismatch_above(got: &Array, expected: &Array, relative: f64, floor: f64) -> Option<String> {
    if got.shape != expected.shape {
        return Some(format!("shape {:?} instead of {:?}", got.shape, expected.shape));
    }
    let scale = expected.data.iter().filter(|x| x.is_finite()).fold(floor, |m: f64, x| m.max(x.abs()));
    worst(got, expected, relative * scale)
}

/// Says where `got` differs from `expected` by more than `allowed`, or is not finite where that is, or the other way round.
fn worst(got: &Array, expected: &Array, allowed: f64) -> Option<String> {
    let off = |(&g, &e): (&f64, &f64)| match e.is_finite() {
        true => g.is_nan() || (g - e).abs() > allowed,
        false => !(g == e || (g.is_nan() && e.is_nan())),
    };
    let wrong: Vec<usize> = (0..got.data.len()).filter(|&i| off((&got.data[i], &expected.data[i]))).collect();
    let worst = wrong.iter().copied().max_by(|&i, &j| {
        let d = |i: usize| (got.data[i] - expected.data[i]).abs();
        d(i).total_cmp(&d(j))
    })?;
    Some(format!(
        "{} of {} elements differ; element {:?}: {} instead of {} (allowed difference {allowed:e})",
        wrong.len(),
        got.data.len(),
        expected.index(worst),
        got.data[worst],
        expected.data[worst],
    ))
}

/// [`mismatch_above`] where nothing of size cancels.
pub fn mismatch(got: &Array, expected: &Array, relative: f64) -> Option<String> {
    mismatch_above(got, expected, relative, 1e-3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::round_to;

    fn one(x: f64) -> Array {
        Array { shape: vec![1], data: vec![x] }
    }

    #[test]
    fn nan_and_infinity_never_pass_as_numbers() {
        assert!(mismatch(&one(f64::NAN), &one(1.0), 1.0).is_some());
        assert!(mismatch(&one(1.0), &one(f64::NAN), 1.0).is_some());
        assert!(mismatch(&one(f64::INFINITY), &one(1.0), 1.0).is_some());
        assert!(mismatch(&one(f64::INFINITY), &one(f64::NEG_INFINITY), 1.0).is_some());
        assert!(mismatch(&one(f64::NAN), &one(f64::NAN), 0.0).is_none());
        assert!(mismatch(&one(1.0 + 1e-9), &one(1.0), 1e-10).is_some());
        assert!(mismatch(&one(1.0 + 1e-11), &one(1.0), 1e-10).is_none());
        assert!(mismatch(&one(1.0), &Array { shape: vec![1, 1], data: vec![1.0] }, 1.0).is_some());
    }

    #[test]
    fn the_worst_element_is_named() {
        let expected = Array::random(&[3, 5], 1.0, 1);
        let mut got = expected.clone();
        got.data[7] += 0.1;
        got.data[11] += 0.3;
        let message = mismatch(&got, &expected, 1e-3).unwrap();
        assert!(message.contains("2 of 15") && message.contains("[2, 1]"), "{message}");
        got.data[2] = f64::NAN;
        assert!(mismatch(&got, &expected, 1e-3).unwrap().contains("[0, 2]"));
    }

    #[test]
    fn tolerances_grow_with_the_sum_and_the_magnitude() {
        assert!(relative(DType::F32, 1, 1.0) < relative(DType::F32, 10_000, 1.0));
        assert!(relative(DType::F32, 1, 1.0) < relative(DType::F32, 1, 1e4));
        assert_eq!(relative(DType::F32, 64, 1.0) / relative(DType::F64, 64, 1.0), 2f64.powi(29));
    }

    #[test]
    fn units_in_the_last_place() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for scale in [1.0, 1.9, 3.0, 0.7, 1000.0] {
                let next = scale + ulp(dtype, scale);
                let here = round_to(scale, dtype);
                assert!(round_to(next, dtype) > here && round_to(here + 0.49 * ulp(dtype, scale), dtype) == here);
            }
        }
        assert_eq!(ulp(DType::BF16, 0.0), 0.0);
    }

    #[test]
    fn half_precision_is_judged_beside_a_plain_implementation() {
        for dtype in [DType::BF16, DType::F16] {
            let reference = Array::random(&[40, 25], 3.0, 4);
            let plain = reference.rounded(dtype);
            let judge = |got: &Array| half_mismatch(got, &plain, &reference, dtype);
            assert_eq!(judge(&plain), None);
            // Half an ulp of the plain implementation allows two ulp at the output's scale, and no more.
            let moved = |by: f64| {
                let mut got = reference.clone();
                got.data[333] += by * ulp(dtype, 3.0);
                got
            };
            assert_eq!(judge(&moved(1.9)), None);
            let message = judge(&moved(-2.1)).unwrap();
            assert!(message.contains("1 of 1000") && message.contains("[13, 8]"), "{message}");
            assert!(judge(&moved(f64::NAN)).is_some() && judge(&moved(f64::INFINITY)).is_some());
            // A plain implementation that fails excuses nothing.
            let mut broken = plain.clone();
            broken.data[5] = f64::NAN;
            assert!(half_mismatch(&broken, &broken, &reference, dtype).is_some());
            assert!(half_mismatch(&moved(2.1), &broken, &reference, dtype).is_some());
            // Where the plain one is exact, one ulp is left.
            assert!(half_mismatch(&moved(1.1), &reference, &reference, dtype).is_some());
            assert_eq!(half_mismatch(&moved(0.9), &reference, &reference, dtype), None);
            let short = Array { shape: vec![25, 40], ..reference.clone() };
            assert!(half_mismatch(&short, &plain, &reference, dtype).is_some());
        }
    }
}
