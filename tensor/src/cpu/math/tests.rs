//! Accuracy of the f32 functions in units in the last place against f64, on every path of this processor; special
//! values; reductions over every length around the accumulator count, with a NaN at every place.

use super::super::isa::{Isa, Kernel, Path, available, dispatch_on};
use super::*;

/// exp, tanh, sigmoid and exp flushed over a slice.
struct Functions<'a>(&'a [f32]);

impl Kernel for Functions<'_> {
    type Output = [Vec<f32>; 4];
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let map = |f: fn(I, f32) -> f32| self.0.iter().map(|x| f(isa, *x)).collect();
        [map(exp_f32), map(tanh_f32), map(sigmoid_f32), map(exp_flushed_f32)]
    }
}

/// sum, sum of squares, max, dot.
struct Reductions<'a, F>(&'a [F], &'a [F]);

impl<F: Float> Kernel for Reductions<'_, F> {
    type Output = [F; 4];
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        [sum(isa, self.0), sum_squares(isa, self.0), max(isa, self.0), dot(isa, self.0, self.1)]
    }
}

/// Distance in units in the last place of `exact` as an f32 (of the smallest subnormal near 0).
fn ulps(value: f32, exact: f64) -> f64 {
    let nearest = exact.abs() as f32;
    let ulp = f64::from(nearest.next_up()) - f64::from(nearest);
    (f64::from(value) - exact).abs() / ulp
}

fn worst(x: &[f32], values: &[f32], exact: impl Fn(f64) -> f64) -> (f64, f32) {
    let errors = x.iter().zip(values).map(|(x, value)| (ulps(*value, exact(f64::from(*x))), *x));
    errors.fold((0.0, 0.0), |worst, error| if error.0 > worst.0 || error.0.is_nan() { error } else { worst })
}

#[test]
fn functions_stay_within_their_stated_error() {
    let x: Vec<f32> = (-2_100_000..=1_774_400).map(|i| i as f32 * 5e-5).collect();
    let tiny = (0..2000).flat_map(|i| {
        let x = 2f32.powi(-100) * 1.08f32.powi(i % 1100);
        [x, -x]
    });
    let x: Vec<f32> = x.into_iter().chain(tiny.filter(|x| x.abs() < 88.0)).collect();
    for path in available() {
        let slack = if path == Path::Portable { 2.0 } else { 0.0 };
        let [exp, tanh, sigmoid, flushed] = dispatch_on(path, Functions(&x));
        let (error, at) = worst(&x, &exp, f64::exp);
        assert!(error <= 1.1 + slack, "exp({at}) is off by {error} ulp on {path:?}");
        // As exp where that is normal, and 0 below.
        let pairs = x.iter().zip(exp.iter().zip(&flushed)).filter(|(x, _)| **x <= 88.0);
        for (x, (exp, flushed)) in pairs {
            let expected = if *x < -87.33 { 0.0 } else { *exp };
            assert!(
                f64::from((flushed - expected).abs()) <= f64::from(f32::EPSILON * expected),
                "{x}: {flushed} on {path:?}"
            );
        }
        let (error, at) = worst(&x, &tanh, f64::tanh);
        assert!(error <= 3.0 + slack, "tanh({at}) is off by {error} ulp on {path:?}");
        let inside: Vec<(f32, f32)> = x.iter().copied().zip(sigmoid).filter(|(x, _)| *x > -87.0).collect();
        let (x, sigmoid): (Vec<f32>, Vec<f32>) = inside.into_iter().unzip();
        let (error, at) = worst(&x, &sigmoid, |x| 1.0 / (1.0 + (-x).exp()));
        assert!(error <= 3.0 + slack, "sigmoid({at}) is off by {error} ulp on {path:?}");
    }
}

#[test]
fn functions_of_special_values() {
    let x = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 0.0, -0.0, 1e30, -1e30, 88.73, -103.98, -88.0, -87.33];
    for path in available() {
        let [exp, tanh, sigmoid, flushed] = dispatch_on(path, Functions(&x));
        assert!(flushed[0].is_nan());
        assert_eq!([1, 3, 4, 6, 8, 9].map(|i| flushed[i]), [0.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        assert!(flushed[10].is_normal());
        assert!(exp[0].is_nan() && tanh[0].is_nan() && sigmoid[0].is_nan());
        assert_eq!(exp[1..8], [0.0, f32::INFINITY, 1.0, 1.0, f32::INFINITY, 0.0, f32::INFINITY]);
        assert_eq!(exp[8], 0.0);
        assert!(exp[9] > 0.0 && !exp[9].is_normal());
        assert_eq!(tanh[1..7], [-1.0, 1.0, 0.0, 0.0, 1.0, -1.0]);
        assert!(tanh[4].is_sign_negative() && tanh[3].is_sign_positive());
        assert_eq!(sigmoid[1..7], [0.0, 1.0, 0.5, 0.5, 1.0, 0.0]);
    }
}

fn values(length: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1 << 23) as f64 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

fn check_reductions<F: Float>(length: usize, epsilon: f64) {
    let (a, b) = (values(length, 1), values(length, 2));
    let round = |x: &[f64]| x.iter().map(|x| F::from_f64(*x)).collect::<Vec<F>>();
    let (x, y) = (round(&a), round(&b));
    let scale = epsilon * length as f64;
    let exact = [
        a.iter().sum::<f64>(),
        a.iter().map(|a| a * a).sum(),
        a.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        a.iter().zip(&b).map(|(a, b)| a * b).sum(),
    ];
    for path in available() {
        let found = dispatch_on(path, Reductions(&x, &y)).map(F::to_f64);
        assert_eq!(found[2], exact[2]);
        for (found, exact) in found.iter().zip(exact) {
            assert!(*found == exact || (found - exact).abs() <= scale, "{found} for {exact}, {path:?}");
        }
        for place in 0..length {
            let mut x = x.clone();
            x[place] = F::from_f64(f64::NAN);
            assert!(dispatch_on(path, Reductions(&x, &y)).iter().all(|value| value.to_f64().is_nan()));
        }
    }
}

#[test]
fn reductions_agree_with_f64_and_pass_nan_on() {
    for length in [0, 1, 2, 3, 7, 15, 16, 31, 32, 33, 63, 64, 65, 100, 128, 333] {
        check_reductions::<f32>(length, 1e-7);
        check_reductions::<f64>(length, 1e-15);
    }
}

#[test]
fn the_greater_of_two_passes_nan_on() {
    let nan = f32::NAN;
    assert!(Float::max(nan, 1.0).is_nan() && Float::max(1.0, nan).is_nan());
    assert_eq!((Float::max(1.0f32, 2.0), Float::max(2.0f64, 1.0)), (2.0, 2.0));
}
