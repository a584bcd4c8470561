//! The checker's own arithmetic: how far elements move, along what, and what is small beside what.

use crate::inputs::{device, normal, positive};
use patchgpt_autograd::gradcheck::{Method, Options, Report, Verdict, gradcheck};
use patchgpt_autograd::{Context, Function, Gradients, Result, Saved, Var, apply};
use patchgpt_tensor::{Binary, DType, Tensor};

fn vector(values: &[f64]) -> Tensor {
    Tensor::from_slice(values, &[values.len()], &device()).unwrap()
}

/// An element moves by `step` times its own size, or 0.1; along a direction up to six times as far. Nearer to a kink it is left out.
#[test]
fn kinks_are_left_out_as_far_as_elements_move() {
    // Sizes 10 and 0.01, with the step 2e-3: reaches of 0.02 and 2e-4 alone.
    let x = [vector(&[10.0, 0.01])];
    let skipped = |element_limit: usize, kink: f64| {
        let options = Options { element_limit, ..Options::default() }.kinks_at(&[kink]);
        gradcheck(|v: &[Var]| v[0].square(), &x, &options).unwrap().inputs[0].skipped
    };
    assert_eq!([9.97, 9.99, 10.01, 10.03].map(|kink| skipped(2, kink)), [0, 1, 1, 0]);
    assert_eq!([0.00975, 0.00985, 0.01015, 0.01025].map(|kink| skipped(2, kink)), [0, 1, 1, 0]);
    assert_eq!([9.87, 9.89, 10.11, 10.13].map(|kink| skipped(1, kink)), [0, 1, 1, 0]);
    assert_eq!([0.0087, 0.0089, 0.0111, 0.0113].map(|kink| skipped(1, kink)), [0, 1, 1, 0]);
}

/// `factor x^2`, whose backward may overwrite where it should add.
struct Square {
    factor: f64,
    overwrites: bool,
}

impl Function for Square {
    fn name(&self) -> &'static str {
        "square under test"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        context.save(inputs[0]);
        Ok(vec![inputs[0].mul(inputs[0])?.affine(self.factor, 0.0)?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let ([x], d_y) = (saved.tensors()?, saved.d_out(d_outputs)?);
        let slope = x.affine(2.0 * self.factor, 0.0)?;
        let overwrites = self.overwrites;
        d_inputs.write(0, |mut d_x| {
            d_x.accumulate &= !overwrites;
            d_y.binary_into(Binary::Mul, &slope, d_x)
        })
    }
}

/// What a backward owes its callers is judged relative to its gradient, however small or large that is.
#[test]
fn contracts_hold_at_every_scale() {
    for factor in [1e-15, 1e-6, 1.0, 1e6, 1e17] {
        let check = |overwrites: bool| {
            let f = |v: &[Var]| Ok(apply(Square { factor, overwrites }, &[&v[0]])?.remove(0));
            gradcheck(f, &[normal(&[3, 5], 1)], &Options::default()).unwrap()
        };
        let right = check(false);
        assert_eq!(right.verdict(), Verdict::Passed, "{factor}: {right}");
        let wrong = check(true);
        assert!(wrong.problems.iter().any(|problem| problem.contains("used twice")), "{factor}: {wrong}");
    }
}

/// `x A`, with the gradient `d_y A` that `d_y A^T` should be.
struct Untransposed(Tensor);

impl Function for Untransposed {
    fn name(&self) -> &'static str {
        "product under test"
    }

    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].matmul(&self.0)?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        d_inputs.add(0, saved.d_out(d_outputs)?.matmul(&self.0)?)
    }
}

/// Directions have nothing to do with the tensor that contracts the output: along that one, a forgotten transpose cancels.
#[test]
fn directions_are_not_the_contraction() {
    let x = Tensor::full(&[1, 6], 1.0, DType::F64, &device()).unwrap();
    let f = |v: &[Var]| Ok(apply(Untransposed(normal(&[6, 6], 4)), &[&v[0]])?.remove(0));
    let options = Options { element_limit: 0, directions: 1, ..Options::default() };
    let report = gradcheck(f, &[x], &options).unwrap();
    assert_eq!(report.inputs[0].method, Method::Directions);
    assert_eq!((report.verdict(), report.inputs[0].failed), (Verdict::Failed, 1), "{report}");
}

/// `factor x`, whose gradient is off by `off` (relative) at the first element and by `-off` at the second.
struct Scaled {
    factor: f64,
    off: f64,
}

impl Function for Scaled {
    fn name(&self) -> &'static str {
        "scaling under test"
    }

    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].affine(self.factor, 0.0)?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_x = saved.d_out(d_outputs)?.affine(self.factor, 0.0)?;
        let mut values = d_x.to_vec::<f64>()?;
        let largest = values.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        values[0] += self.off * largest;
        values[1] -= self.off * largest;
        d_inputs.add(0, Tensor::from_slice(&values, d_x.shape(), &device())?)
    }
}

/// The differences alone, along directions.
fn along_directions(directions: usize) -> Options {
    Options {
        element_limit: 0,
        directions,
        second_use: false,
        each_alone: false,
        strided_gradients: false,
        in_place_writes: false,
        ..Options::default()
    }
}

fn check_scaled(factor: f64, off: f64, size: f64, options: &Options) -> Report {
    let f = |v: &[Var]| Ok(apply(Scaled { factor, off }, &[&v[0]])?.remove(0));
    gradcheck(f, &[Tensor::full(&[20], size, DType::F64, &device()).unwrap()], options).unwrap()
}

/// Errors of opposite signs do not cancel, whatever the size of the elements: each moves by an amount of its own.
#[test]
fn directions_are_random_in_every_element() {
    for size in [1e-3, 1.0, 1e3] {
        let report = check_scaled(1.0, 1e-4, size, &along_directions(6));
        assert_eq!(report.verdict(), Verdict::Failed, "{size}: {report}");
        let index = report.inputs[0].worst.as_ref().unwrap().index.as_ref().unwrap();
        assert!(index[0] < 2, "{size}: {report}");
    }
}

/// An error that all elements share is none's to blame.
#[test]
fn no_element_is_named_for_what_all_share() {
    let slightly = |v: &[Var]| v[0].affine(1.0 - 3e-6, 0.0)?.add(&v[0].detach().affine(3e-6, 0.0)?);
    for size in [1.0, 1e3] {
        let x = Tensor::full(&[200], size, DType::F64, &device()).unwrap();
        let report = gradcheck(slightly, &[x], &along_directions(20)).unwrap();
        assert_eq!(report.verdict(), Verdict::Failed, "{report}");
        assert_eq!(report.inputs[0].worst.as_ref().unwrap().index, None, "{report}");
    }
}

/// What is right costs four evaluations a direction; what is wrong costs more, to name the element, at every scale.
#[test]
fn only_what_is_wrong_is_searched() {
    for factor in [1e-9, 1.0, 1e9] {
        let right = check_scaled(factor, 0.0, 1.0, &along_directions(3));
        assert_eq!((right.verdict(), right.evaluations), (Verdict::Passed, 2 + 4 * 3), "{factor}: {right}");
        let wrong = check_scaled(factor, 0.1, 1.0, &along_directions(3));
        assert_eq!(wrong.verdict(), Verdict::Failed, "{factor}: {wrong}");
        assert!(wrong.evaluations > 2 + 4 * 3, "{factor}: {wrong}");
        assert!(wrong.inputs[0].worst.as_ref().unwrap().index.is_some(), "{factor}: {wrong}");
        // Nothing is searched that an absolute tolerance excuses, or where the gradient is declared to be zero.
        let excused = Options { absolute: 1e12, ..along_directions(3) };
        assert_eq!(check_scaled(factor, 0.1, 1.0, &excused).evaluations, 2 + 4 * 3);
        let zero = Options { zero_inputs: vec![0], ..along_directions(3) };
        assert_eq!(check_scaled(factor, 0.1, 1.0, &zero).evaluations, 2 + 4 * 3);
    }
}

/// The scale of a comparison along directions is the norm of the gradient, in units of the moves, by backward or by differences.
#[test]
fn the_scale_is_the_norm_of_the_gradient() {
    for size in [0.5, 4.0] {
        let report = check_scaled(1.0, 0.0, size, &along_directions(400));
        // The gradient is the contraction; its elements, at this size, are found one by one.
        let elements = Options { element_limit: 20, ..along_directions(1) };
        let mut squares = 0.0;
        for i in 0..20 {
            let one = elements.clone().kinks(move |point| point.index != i);
            squares += check_scaled(1.0, 0.0, size, &one).inputs[0].worst.as_ref().unwrap().numeric.powi(2);
        }
        let norm = squares.sqrt() * size;
        assert!((report.inputs[0].scale / norm - 1.0).abs() < 0.15, "{size}: {norm}, {report}");
        // A gradient of nearly nothing does not hide it.
        let f = |v: &[Var]| v[0].detach().add(&v[0].affine(1e-3, 0.0)?);
        let x = Tensor::full(&[20], size, DType::F64, &device()).unwrap();
        let report = gradcheck(f, &[x], &along_directions(400)).unwrap();
        assert_eq!(report.verdict(), Verdict::Failed);
        assert!((report.inputs[0].scale / norm - 1.0).abs() < 0.15, "{size}: {norm}, {report}");
    }
}

/// The step, both derivatives and the error of the differences are those of the formulas.
#[test]
fn a_comparison_reports_what_was_measured() {
    let worst = |size: f64| {
        let cube = |v: &[Var]| v[0].square()?.mul(&v[0]);
        let report = gradcheck(cube, &[vector(&[size])], &Options::default()).unwrap().into_result().unwrap();
        report.inputs[0].worst.clone().unwrap()
    };
    let (one, ten) = (worst(1.0), worst(10.0));
    assert_eq!((one.step, ten.step), (2e-3, 2e-2));
    // One contraction, so the gradients are in the ratio of 3 x^2.
    for (one, ten) in [(one.analytic, ten.analytic), (one.numeric, ten.numeric)] {
        assert!((ten / one / 100.0 - 1.0).abs() < 1e-9);
    }
    // ((x + h)^3 - (x - h)^3) / 2h = 3 x^2 + h^2: a third of the change from h to h/2 is h^2 / 4.
    let expected = 2e-3f64.powi(2) / 4.0 / 3.0;
    assert!((one.uncertainty / one.numeric.abs() / expected - 1.0).abs() < 1e-3, "{one:?}");
    // A backward that is wrong makes the differences no less certain.
    let wrong = |v: &[Var]| v[0].affine(2.0, 0.0)?.add(&v[0].detach());
    let report = gradcheck(wrong, &[vector(&[1.0])], &Options::default()).unwrap();
    let worst = report.inputs[0].worst.as_ref().unwrap();
    assert!(worst.uncertainty < 1e-9 * worst.error(), "{report}");
    assert!((worst.error() - (worst.analytic - worst.numeric).abs()).abs() < 1e-15 && worst.error() > 0.0, "{report}");
    for infinite in [f64::INFINITY, f64::NEG_INFINITY] {
        let [mut left, mut right] = [worst.clone(), worst.clone()];
        (left.analytic, right.numeric) = (infinite, infinite);
        assert!(left.error().is_nan() && right.error().is_nan());
    }
}

/// Beside 1e8, a number is known to about 1e-8, and its slope over 2e-3 to about 1e-5: twice that is the stated uncertainty.
#[test]
fn rounding_is_part_of_the_uncertainty() {
    for seed in 0..5 {
        let options = Options { seed, tolerance: 1e-3, ..Options::default() };
        let offset = |v: &[Var]| v[0].affine(1.0, 1e8);
        let report = gradcheck(offset, &[vector(&[1.0])], &options).unwrap();
        let worst = report.inputs[0].worst.as_ref().unwrap();
        // At half the step, 1e-3 to either side: 2 * 2e8 eps / 2e-3, and as much again for what the differences happen to show.
        let least = 2.0 * 2e8 * f64::EPSILON / 2e-3;
        let found = worst.uncertainty / worst.analytic.abs();
        assert!((0.99 * least..2.0 * least).contains(&found), "{seed}: {found}, at least {least}, {report}");
    }
}

/// A function of nothing certifies nothing, though the differences are exact.
#[test]
fn a_constant_is_unchecked() {
    let report = gradcheck(|v: &[Var]| v[0].affine(0.0, 0.0), &[normal(&[3], 1)], &Options::default()).unwrap();
    assert_eq!((report.verdict(), report.inputs[0].agreed), (Verdict::Unchecked, 0), "{report}");
}

/// Whether the output grows above or below the point, it must not.
#[test]
fn the_shape_must_not_depend_on_the_values() {
    for above in [false, true] {
        let f = |v: &[Var]| {
            let grows = (v[0].tensor().to_vec::<f64>()?[0] > 1.0) == above && v[0].tensor().to_vec::<f64>()?[0] != 1.0;
            v[0].broadcast_to(&[if grows { 2 } else { 1 }, 1])
        };
        let error = gradcheck(f, &[vector(&[1.0])], &Options::default()).unwrap_err().to_string();
        assert!(error.contains("shape must not depend"), "{error}");
    }
}

#[test]
fn settings_out_of_range_are_named() {
    for (options, part) in [
        (Options { step: f64::NAN, ..Options::default() }, "step: NaN"),
        (Options { tolerance: 0.0, ..Options::default() }, "tolerance: 0.0"),
        (Options { directions: 0, ..Options::default() }, "directions: 0"),
    ] {
        let error = gradcheck(|v: &[Var]| v[0].square(), &[vector(&[1.0])], &options).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// What reaches into gradients that are there before backward is noticed, by a rounding's breadth or by a NaN.
#[test]
fn gradients_in_views_hold_what_backward_added() {
    for spoilt in [0.0, 1e-8, f64::NAN] {
        let f = |v: &[Var]| {
            if let Some(gradient) = v[0].gradient() {
                gradient.copy_(&gradient.affine(1.0, spoilt)?)?;
            }
            v[0].square()
        };
        for shape in [&[5][..], &[3, 2]] {
            let report = gradcheck(f, &[positive(shape, 1)], &Options::default()).unwrap();
            let noticed = report.problems.iter().any(|problem| problem.contains("view with gaps"));
            assert_eq!(noticed, spoilt != 0.0, "{shape:?}, {spoilt}: {report}");
        }
    }
}

/// An input without elements has nothing to check, and takes nothing away from the others.
#[test]
fn empty_inputs_are_no_obstacle() {
    for shape in [&[0, 3][..], &[4, 0], &[0]] {
        let inputs = [normal(&[2, 3], 1), normal(shape, 2)];
        let f = |v: &[Var]| v[0].square()?.sum_all()?.add(&v[1].exp()?.sum_all()?);
        let report = gradcheck(f, &inputs, &Options::default()).unwrap().into_result().unwrap();
        assert!(report.inputs[1].is_empty() && !report.inputs[0].is_empty());
        let alone = gradcheck(|v: &[Var]| v[0].exp()?.sum_all(), &inputs[1..], &Options::default()).unwrap();
        assert_eq!(alone.verdict(), Verdict::Unchecked);
    }
}

/// A single input has no others to be tracked with, so that part of the check costs nothing.
#[test]
fn a_single_input_is_not_run_alone_again() {
    let options = Options { each_alone: true, element_limit: 256, ..along_directions(1) };
    let report = gradcheck(|v: &[Var]| v[0].square(), &[positive(&[3], 1)], &options).unwrap();
    assert_eq!(report.evaluations, 2 + 4 * 3);
}

/// One side that is infinite is no agreement, though the scale is infinite then too.
#[test]
fn infinity_agrees_with_nothing() {
    let f = |v: &[Var]| Ok(apply(Scaled { factor: 1.0, off: f64::INFINITY }, &[&v[0]])?.remove(0));
    for options in [Options::default(), along_directions(4)] {
        let report = gradcheck(f, &[positive(&[4], 1)], &options).unwrap();
        assert_eq!((report.inputs[0].verdict, report.verdict()), (Verdict::Failed, Verdict::Failed), "{report}");
    }
}
