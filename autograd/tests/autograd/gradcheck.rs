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
