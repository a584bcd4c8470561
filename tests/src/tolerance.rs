//! How far a result may lie from the f64 reference.
//!
//! A sum of n products in an arithmetic of machine epsilon e, in any order, errs by at most about n * e * sum|a b|; rounding errors of
//! random sign add up to about sqrt(n) * e instead (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2). Results are judged
//! against the largest magnitude of the reference, with a margin for the handful of roundings around the sum.

use patchgpt_tensor::DType;

use crate::array::Array;

/// Roundings outside the longest sum, exponentials of 2 ulp among them.
const ROUNDINGS: f64 = 16.0;

/// The largest admissible difference, relative to the largest magnitude of the reference, for results that contain sums of
/// `reduction` terms.
pub fn relative(dtype: DType, reduction: usize) -> f64 {
    dtype.epsilon() * (ROUNDINGS + 4.0 * (reduction as f64).sqrt())
}

/// Says where `got` differs from `expected` by more than `relative` times the largest magnitude of the reference (at least `floor`: the size
/// of the terms that may cancel); `None` if nowhere. NaN and infinity must stand where the reference has them.
pub fn mismatch_above(got: &Array, expected: &Array, relative: f64, floor: f64) -> Option<String> {
    if got.shape != expected.shape {
        return Some(format!("shape {:?} instead of {:?}", got.shape, expected.shape));
    }
    let scale = expected.data.iter().filter(|x| x.is_finite()).fold(floor, |m: f64, x| m.max(x.abs()));
    let off = |(&g, &e): (&f64, &f64)| match e.is_finite() {
        true => g.is_nan() || (g - e).abs() > relative * scale,
        false => !(g == e || (g.is_nan() && e.is_nan())),
    };
    let wrong: Vec<usize> = (0..got.data.len()).filter(|&i| off((&got.data[i], &expected.data[i]))).collect();
    let worst = wrong.iter().copied().max_by(|&i, &j| {
        let d = |i: usize| (got.data[i] - expected.data[i]).abs();
        d(i).total_cmp(&d(j))
    })?;
    Some(format!(
        "{} of {} elements differ; element {worst}: {} instead of {} (allowed difference {:e})",
        wrong.len(),
        got.data.len(),
        got.data[worst],
        expected.data[worst],
        relative * scale
    ))
}

/// [`mismatch_above`] where nothing of size cancels.
pub fn mismatch(got: &Array, expected: &Array, relative: f64) -> Option<String> {
    mismatch_above(got, expected, relative, 1e-3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_and_infinity_never_pass_as_numbers() {
        let a = |x: f64| Array { shape: vec![1], data: vec![x] };
        assert!(mismatch(&a(f64::NAN), &a(1.0), 1.0).is_some());
        assert!(mismatch(&a(1.0), &a(f64::NAN), 1.0).is_some());
        assert!(mismatch(&a(f64::INFINITY), &a(1.0), 1.0).is_some());
        assert!(mismatch(&a(f64::NAN), &a(f64::NAN), 0.0).is_none());
        assert!(mismatch(&a(1.0 + 1e-9), &a(1.0), 1e-10).is_some());
        assert!(mismatch(&a(1.0 + 1e-11), &a(1.0), 1e-10).is_none());
    }
}
