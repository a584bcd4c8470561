//! The checker must refuse what is wrong: each way to write a bad backward, checks that certify nothing, inputs it cannot judge.

use crate::inputs::{device, layouts, normal, positive};
use patchgpt_autograd::gradcheck::{Method, Options, Report, Verdict, gradcheck};
use patchgpt_autograd::{Context, Error, Function, Gradients, Result, Saved, Var, apply};
use patchgpt_tensor::{Binary, DType, Destination, Tensor, Unary};

/// What is wrong with a backward of `y = x^2`.
#[derive(Clone, Copy, PartialEq)]
enum Mistake {
    None,
    DroppedFactor,
    Transposed,
    Overwrites,
    OneElement(usize),
    NotANumber(usize),
    SpoilsItsInput,
    WrongShape,
    WrongDtype,
    Forgets,
    Unimplemented,
    SlightlyOff(f64),
}

struct Square(Mistake);

impl Square {
    fn gradient(&self, x: &Tensor, d_y: &Tensor) -> Result<Tensor> {
        let factor = if self.0 == Mistake::DroppedFactor { 1.0 } else { 2.0 };
        let d_x = d_y.mul(x)?.affine(factor, 0.0)?;
        Ok(match self.0 {
            Mistake::Transposed => d_x.t()?.contiguous()?.reshape(x.shape())?,
            Mistake::OneElement(i) => edit(&d_x, i, |v| v + 1.0)?,
            Mistake::NotANumber(i) => edit(&d_x, i, |_| f64::NAN)?,
            Mistake::SlightlyOff(by) => d_x.affine(1.0 + by, 0.0)?,
            _ => d_x,
        })
    }
}

fn edit(x: &Tensor, i: usize, f: impl Fn(f64) -> f64) -> Result<Tensor> {
    let mut values = x.to_vec::<f64>()?;
    values[i] = f(values[i]);
    Ok(Tensor::from_slice(&values, x.shape(), x.device())?)
}

impl Function for Square {
    fn name(&self) -> &'static str {
        "square under test"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        context.save(inputs[0]);
        Ok(vec![inputs[0].unary(Unary::Square)?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let ([x], d_y) = (saved.tensors()?, saved.d_out(d_outputs)?);
        let d_x = self.gradient(x, d_y)?;
        match self.0 {
            Mistake::Overwrites => d_inputs.write(0, |d| d.tensor.copy_(&d_x)),
            Mistake::SpoilsItsInput => {
                d_y.binary_into(Binary::Mul, &x.affine(2.0, 0.0)?, Destination::write(d_y))?;
                d_inputs.add(0, d_x)
            }
            Mistake::WrongShape => d_inputs.add(0, d_x.reshape(&[x.len()])?),
            Mistake::WrongDtype => d_inputs.add(0, d_x.cast(DType::F32)?),
            Mistake::Forgets => Ok(()),
            Mistake::Unimplemented => Err(Error::NoBackward { op: self.name() }),
            _ => d_inputs.add(0, d_x),
        }
    }
}

fn check(mistake: Mistake, x: &Tensor) -> Result<Report> {
    let square = |v: &[Var]| Ok(apply(Square(mistake), &[&v[0]])?.remove(0));
    gradcheck(square, std::slice::from_ref(x), &Options::default())
}

#[test]
fn correct_backwards_pass() {
    for shape in [&[][..], &[1], &[3, 5], &[40, 25]] {
        for x in layouts(shape, normal, 1) {
            check(Mistake::None, &x).unwrap().into_result().unwrap();
        }
    }
}

#[test]
fn wrong_values_fail() {
    let (small, large) = (normal(&[3, 5], 1), normal(&[100, 100], 2));
    for mistake in [
        Mistake::DroppedFactor,
        Mistake::Transposed,
        Mistake::OneElement(7),
        Mistake::NotANumber(7),
        Mistake::Overwrites,
        Mistake::SpoilsItsInput,
        Mistake::SlightlyOff(1e-5),
        Mistake::SlightlyOff(f64::NAN),
        Mistake::SlightlyOff(f64::INFINITY),
    ] {
        for x in [&small, &large] {
            let report = check(mistake, x).unwrap();
            assert_eq!(report.verdict(), Verdict::Failed, "{report}");
            assert!(matches!(report.into_result(), Err(Error::GradientCheck(_))));
        }
    }
}

/// One wrong element of 10,000 is found along random directions, and named.
#[test]
fn worst_element_is_named() {
    for mistake in [Mistake::OneElement(4321), Mistake::NotANumber(4321)] {
        let report = check(mistake, &normal(&[100, 100], 2)).unwrap();
        let input = &report.inputs[0];
        assert_eq!(input.method, Method::Directions);
        let worst = input.worst.as_ref().unwrap();
        assert_eq!(worst.index, Some(vec![43, 21]), "{report}");
        assert!(report.to_string().contains("[43, 21]"), "{report}");
    }
    let report = check(Mistake::OneElement(7), &normal(&[3, 5], 1)).unwrap();
    let worst = report.inputs[0].worst.clone().unwrap();
    assert_eq!(worst.index, Some(vec![1, 2]));
    assert!((worst.analytic - worst.numeric - 1.0).abs() < 2.0, "{report}");
    assert_eq!((report.inputs[0].agreed, report.inputs[0].failed), (14, 1));
}

#[test]
fn gradients_that_do_not_fit_are_errors_naming_the_op() {
    let x = normal(&[3, 5], 1);
    for (mistake, part) in [
        (Mistake::WrongShape, "must be f64 [3, 5]"),
        (Mistake::WrongDtype, "f32 [3, 5]"),
        (Mistake::Forgets, "gave no gradient to input 0"),
        (Mistake::Unimplemented, "no backward"),
    ] {
        let message = check(mistake, &x).unwrap_err().to_string();
        assert!(message.contains("square under test") && message.contains(part), "{message}");
    }
}

/// A tiny step drowns the differences in rounding: everything is excused, and that is no pass.
#[test]
fn excuses_do_not_certify() {
    let x = positive(&[4], 1);
    let options = Options { step: 1e-9, ..Options::default() };
    let offset = |v: &[Var]| v[0].square()?.affine(1.0, 1e6);
    let report = gradcheck(offset, std::slice::from_ref(&x), &options).unwrap();
    assert_eq!(report.verdict(), Verdict::Unchecked, "{report}");
    assert!(report.inputs[0].excused > 0);
    assert!(report.into_result().is_err());
    let options = Options { step: 0.1, ..Options::default() };
    gradcheck(offset, &[x], &options).unwrap().into_result().unwrap();
}

#[test]
fn unused_inputs_are_unchecked_unless_declared() {
    let inputs = [normal(&[3], 1), normal(&[3], 2)];
    let first = |v: &[Var]| v[0].square();
    let report = gradcheck(first, &inputs, &Options::default()).unwrap();
    assert_eq!(report.verdict(), Verdict::Unchecked, "{report}");
    let options = Options { zero_inputs: vec![1], ..Options::default() };
    gradcheck(first, &inputs, &options).unwrap().into_result().unwrap();
    // Zero by mathematics, not by construction: the softmax does not see a shift.
    let shift = |v: &[Var]| v[0].add(&v[1].sum_all()?)?.softmax();
    gradcheck(shift, &inputs, &options).unwrap().into_result().unwrap();
    // A declaration that is not true fails.
    let report = gradcheck(|v: &[Var]| v[0].mul(&v[1]), &inputs, &options).unwrap();
    assert_eq!(report.verdict(), Verdict::Failed, "{report}");
}

/// `|x|`, whose gradient is the sign of x.
struct Abs;

impl Function for Abs {
    fn name(&self) -> &'static str {
        "abs"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        context.save(inputs[0]);
        Ok(vec![inputs[0].binary(Binary::Max, &inputs[0].unary(Unary::Neg)?)?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let ([x], d_y) = (saved.tensors()?, saved.d_out(d_outputs)?);
        let sign: Vec<f64> = x.to_vec::<f64>()?.iter().map(|v| if *v > 0.0 { 1.0 } else { -1.0 }).collect();
        let sign = Tensor::from_slice(&sign, x.shape(), x.device())?;
        d_inputs.write(0, |d| d_y.binary_into(Binary::Mul, &sign, d))
    }
}

#[test]
fn kinks_are_declared() {
    let abs = |v: &[Var]| Ok(apply(Abs, &[&v[0]])?.remove(0));
    let x = Tensor::from_slice(&[1.0, 0.0, -2.0, 1e-5], &[4], &device()).unwrap();
    let x = std::slice::from_ref(&x);
    assert_eq!(gradcheck(abs, x, &Options::default()).unwrap().verdict(), Verdict::Failed);
    for options in [Options::default().kinks_at(&[0.0]), Options::default().kinks(|p| p.index % 2 == 1)] {
        let report = gradcheck(abs, x, &options).unwrap().into_result().unwrap();
        assert_eq!((report.inputs[0].agreed, report.inputs[0].skipped), (2, 2));
    }
    // A gradient that is not finite fails, skipped or not: the root of the square divides zero by zero at 0.
    let root = |v: &[Var]| v[0].square()?.sqrt();
    let report = gradcheck(root, x, &Options::default().kinks_at(&[0.0])).unwrap();
    assert_eq!(report.verdict(), Verdict::Failed, "{report}");
    assert!(report.to_string().contains("input 0: its gradient at [1] is NaN"), "{report}");
    // All skipped: nothing was checked.
    let all = Options::default().kinks(|_| true);
    assert_eq!(gradcheck(abs, x, &all).unwrap().verdict(), Verdict::Unchecked);
    // Along directions, too.
    let many = edit(&normal(&[1000], 3), 500, |_| 1e-5).unwrap();
    let options = Options::default().kinks_at(&[0.0]);
    let report = gradcheck(abs, &[many], &options).unwrap().into_result().unwrap();
    assert!(report.inputs[0].skipped > 0);
}

#[test]
fn what_cannot_be_checked_is_an_error() {
    let single = normal(&[3], 1).cast(DType::F32).unwrap();
    let message = gradcheck(|v: &[Var]| v[0].square(), &[single], &Options::default()).unwrap_err().to_string();
    assert!(message.contains("f64"), "{message}");
    assert!(gradcheck(|v: &[Var]| v[0].square(), &[], &Options::default()).is_err());
    let options = Options { step: 0.0, ..Options::default() };
    assert!(gradcheck(|v: &[Var]| v[0].square(), &[normal(&[3], 1)], &options).is_err());
    let detached = gradcheck(|v: &[Var]| v[0].detach().square(), &[normal(&[3], 1)], &Options::default());
    assert!(matches!(detached, Err(Error::Untracked)));
}

/// A function that is not finite where it is checked fails, whatever its backward says.
#[test]
fn not_finite_never_passes() {
    let x = Tensor::from_slice(&[1.0, -1.0, 2.0], &[3], &device()).unwrap();
    let report = gradcheck(|v: &[Var]| v[0].log(), std::slice::from_ref(&x), &Options::default()).unwrap();
    assert_eq!(report.verdict(), Verdict::Failed, "{report}");
    let report = gradcheck(|v: &[Var]| v[0].affine(1e300, 0.0)?.square(), &[x], &Options::default()).unwrap();
    assert_eq!(report.verdict(), Verdict::Failed, "{report}");
}

#[test]
fn an_absolute_tolerance_excuses_and_never_certifies() {
    let x = normal(&[3, 5], 1);
    let wrong = |v: &[Var]| Ok(apply(Square(Mistake::DroppedFactor), &[&v[0]])?.remove(0));
    let generous = Options { absolute: 1e9, ..Options::default() };
    let report = gradcheck(wrong, std::slice::from_ref(&x), &generous).unwrap();
    assert_eq!(report.verdict(), Verdict::Unchecked, "{report}");
    assert_eq!((report.inputs[0].agreed, report.inputs[0].failed), (0, 0));
    // Along directions, too.
    let report = gradcheck(wrong, &[normal(&[40, 25], 2)], &generous).unwrap();
    assert_eq!(report.verdict(), Verdict::Unchecked, "{report}");
    // What is right is certified all the same, and one excused element does not take that away.
    let right = |v: &[Var]| v[0].square();
    assert_eq!(gradcheck(right, std::slice::from_ref(&x), &generous).unwrap().verdict(), Verdict::Passed);
    let slightly = |v: &[Var]| Ok(apply(Square(Mistake::OneElement(7)), &[&v[0]])?.remove(0));
    let report =
        gradcheck(slightly, std::slice::from_ref(&x), &Options { absolute: 10.0, ..Options::default() }).unwrap();
    assert_eq!((report.verdict(), report.inputs[0].excused), (Verdict::Passed, 1), "{report}");
    // It excuses no NaN, and no declared zero.
    let nan = |v: &[Var]| Ok(apply(Square(Mistake::NotANumber(7)), &[&v[0]])?.remove(0));
    assert_eq!(gradcheck(nan, std::slice::from_ref(&x), &generous).unwrap().verdict(), Verdict::Failed);
    let zero = Options { zero_inputs: vec![0], ..generous };
    assert_eq!(gradcheck(right, std::slice::from_ref(&x), &zero).unwrap().verdict(), Verdict::Failed);
    for absolute in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(gradcheck(right, std::slice::from_ref(&x), &Options { absolute, ..Options::default() }).is_err());
    }
}

/// How a product treats inputs that need no gradient, and tensors that it keeps for backward.
#[derive(Clone, Copy, PartialEq)]
enum Habit {
    /// Saves what each gradient needs.
    Careful,
    /// Halves the gradient of an input if the other one is constant.
    NeedsBoth,
    /// Gives no gradient to the second input unless the first is tracked.
    ForgetsTheSecond,
    /// Keeps its inputs behind the back of the graph.
    Hides,
}

struct Product(Habit, std::sync::Mutex<Vec<Tensor>>);

impl Function for Product {
    fn name(&self) -> &'static str {
        "product under test"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        match self.0 {
            Habit::Hides => self.1.lock().unwrap().extend(inputs.iter().map(|x| (*x).clone())),
            _ => inputs.iter().for_each(|x| context.save(x)),
        }
        Ok(vec![inputs[0].mul(inputs[1])?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_y = saved.d_out(d_outputs)?;
        let hidden = self.1.lock().unwrap();
        for i in 0..2 {
            let other = if self.0 == Habit::Hides { &hidden[1 - i] } else { saved.get(1 - i)? };
            let half = self.0 == Habit::NeedsBoth && !d_inputs.wanted(1 - i);
            if self.0 == Habit::ForgetsTheSecond && !d_inputs.wanted(0) {
                return Ok(());
            }
            d_inputs.add(i, d_y.mul(other)?.affine(if half { 0.5 } else { 1.0 }, 0.0)?)?;
        }
        Ok(())
    }
}

fn check_product(habit: Habit, inputs: &[Tensor], options: &Options) -> Result<Report> {
    let product = |v: &[Var]| Ok(apply(Product(habit, Default::default()), &[&v[0], &v[1]])?.remove(0));
    gradcheck(product, inputs, options)
}

#[test]
fn inputs_that_need_no_gradient_change_nothing() {
    let inputs = [normal(&[3, 5], 1), normal(&[3, 5], 2)];
    check_product(Habit::Careful, &inputs, &Options::default()).unwrap().into_result().unwrap();
    let report = check_product(Habit::NeedsBoth, &inputs, &Options::default()).unwrap();
    assert_eq!(report.verdict(), Verdict::Failed, "{report}");
    assert!(report.problems.len() == 2 && report.problems[0].contains("input 0: tracked alone"), "{report}");
    let message = check_product(Habit::ForgetsTheSecond, &inputs, &Options::default()).unwrap_err().to_string();
    assert!(message.contains("product under test") && message.contains("input 1"), "{message}");
    // Without that part of the check the mistake is out of sight.
    let options = Options { each_alone: false, ..Options::default() };
    assert_eq!(check_product(Habit::NeedsBoth, &inputs, &options).unwrap().verdict(), Verdict::Passed);
}

#[test]
fn tensors_that_change_before_backward_are_noticed() {
    let inputs = [normal(&[3, 5], 1), normal(&[3, 5], 2)];
    let report = check_product(Habit::Hides, &inputs, &Options::default()).unwrap();
    assert_eq!(report.verdict(), Verdict::Failed, "{report}");
    assert!(report.problems.len() == 2 && report.problems[1].contains("input 1: written in place"), "{report}");
    assert!(report.inputs.iter().all(|input| input.verdict == Verdict::Passed), "{report}");
    let options = Options { in_place_writes: false, ..Options::default() };
    assert_eq!(check_product(Habit::Hides, &inputs, &options).unwrap().verdict(), Verdict::Passed);
}

/// Every run of the function is counted, those of the parts that can be turned off too.
#[test]
fn evaluations_are_counted() {
    let runs = std::cell::Cell::new(0);
    let f = |v: &[Var]| {
        runs.set(runs.get() + 1);
        v[0].mul(&v[1])
    };
    let inputs = [normal(&[2], 1), normal(&[2], 2)];
    let off = Options {
        second_use: false,
        each_alone: false,
        strided_gradients: false,
        in_place_writes: false,
        ..Options::default()
    };
    let count = |options: Options| {
        runs.set(0);
        let report = gradcheck(f, &inputs, &options).unwrap();
        assert_eq!(report.evaluations, runs.get());
        runs.get()
    };
    // One with gradients, one without recording, four for each of four elements.
    let least = count(off.clone());
    assert_eq!(least, 2 + 4 * 4);
    assert_eq!(count(Options { second_use: true, ..off.clone() }), least + 2);
    assert_eq!(count(Options { each_alone: true, ..off.clone() }), least + 2);
    assert_eq!(count(Options { strided_gradients: true, ..off.clone() }), least + 1);
    assert_eq!(count(Options { in_place_writes: true, ..off }), least + 3);
}
