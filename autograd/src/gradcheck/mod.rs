//! Gradient checking: backward against central differences, in f64.
//!
//! A check can be trusted because of what it refuses: errors are judged relative to the norm of the input's gradient; the error of the differences
//! themselves is estimated, and may excuse a comparison but never certify one, and neither may an absolute tolerance; NaN and infinity fail; a
//! check that could not certify anything is [`Verdict::Unchecked`], which is not a pass. Besides, backward is run as training runs it: on
//! inputs used twice, with some inputs constant, into views, and after a saved tensor was overwritten.

mod contract;
mod difference;
mod options;
mod report;

use std::cell::Cell;

use patchgpt_tensor::{DType, Device, Distribution, Tensor};

use crate::{Error, Result, Var};
use contract::Contract;
use difference::{Move, Problem};
pub use options::{Kink, Options, Point};
pub use report::{Comparison, InputReport, Method, Report, Verdict};

/// Largest disagreement, relative to the largest element, between two computations that differ in rounding only.
const ROUNDING: f64 = 1e-10;

/// Elements smaller than this move as if they had this size.
const SMALLEST_UNIT: f64 = 0.1;

/// How far, in its own units, an element may move along a random direction (normal; beyond it with probability 1e-9).
const FARTHEST: f64 = 6.0;

/// Checks the gradients of `f` at `inputs`, all f64 on one device, of any strides.
///
/// The output may have any shape; it is contracted with a fixed random tensor. Backward runs on the inputs as they are, differences on contiguous copies. What else
/// `f` needs (indices, targets, constants) it captures.
///
/// # Errors
/// Inputs that are not f64, no inputs, settings out of range, and the errors of `f` and its backward. A gradient that is wrong is not an error here but a
/// [`Report`]; turn it into one with [`Report::into_result`].
///
/// ```
/// use patchgpt_autograd::{Var, gradcheck};
/// use patchgpt_tensor::{Device, Tensor};
/// # fn main() -> patchgpt_autograd::Result<()> {
/// let x = Tensor::from_slice(&[0.3, -1.2, 2.0], &[3], &Device::cpu()?)?;
/// let report = gradcheck(|v: &[Var]| v[0].tanh()?.mul(&v[0]), &[x], &gradcheck::Options::default())?;
/// assert_eq!(report.verdict(), gradcheck::Verdict::Passed);
/// # Ok(()) }
/// ```
pub fn gradcheck<F>(f: F, inputs: &[Tensor], options: &Options) -> Result<Report>
where
    F: Fn(&[Var]) -> Result<Var>,
{
    check_settings(inputs, options)?;
    let parameters: Vec<Var> = inputs.iter().cloned().map(Var::parameter).collect();
    let y = f(&parameters)?;
    let cotangent = random(y.shape(), options.seed, 0, y.device())?;
    let output = y.tensor().to_f64_vec()?;
    y.backward_with(&cotangent, false)?;
    let gradients = gathered(&parameters)?;

    let problem = Problem {
        function: &f,
        inputs: inputs.iter().map(Tensor::contiguous).collect::<patchgpt_tensor::Result<_>>()?,
        values: inputs.iter().map(Tensor::to_vec).collect::<patchgpt_tensor::Result<_>>()?,
        cotangent: cotangent.to_vec()?,
        evaluations: Cell::new(1),
    };
    let mut problems = Vec::new();
    if output.iter().any(|y| !y.is_finite()) {
        problems.push("the output is not finite".to_string());
    }
    for (i, gradient) in gradients.iter().enumerate() {
        // Of elements that are left out as kinks, too.
        if let Some(element) = gradient.iter().position(|g| !g.is_finite()) {
            let index = index_of(inputs[i].shape(), element);
            problems.push(format!("input {i}: its gradient at {index:?} is {}", gradient[element]));
        }
    }
    if disagrees(&output, &problem.evaluate(None)?, 1.0) {
        problems.push("the output depends on recording or on the strides of the inputs".to_string());
    }
    let zero_inputs = &options.zero_inputs;
    let contract = Contract { function: &f, inputs, cotangent: &cotangent, gradients: &gradients, zero_inputs };
    let (broken, runs) = contract.check(options)?;
    problems.extend(broken);
    problem.evaluations.set(problem.evaluations.get() + runs);
    let reports = gradients.iter().enumerate().map(|(i, gradient)| check_input(&problem, i, gradient, options));
    Ok(Report {
        inputs: reports.collect::<Result<_>>()?,
        problems,
        evaluations: problem.evaluations.get(),
        tolerance: options.tolerance,
    })
}

fn check_settings(inputs: &[Tensor], options: &Options) -> Result<()> {
    let op = "gradcheck";
    if inputs.is_empty() {
        return Err(Error::value(op, "at least one input expected, got none"));
    }
    if let Some((i, x)) = inputs.iter().enumerate().find(|(_, x)| x.dtype() != DType::F64) {
        let message =
            format!("input {i} is {}; gradients are checked in f64 only, cast the input with Tensor::cast", x.dtype());
        return Err(Error::value(op, message));
    }
    let positive = |x: f64| x.is_finite() && x > 0.0;
    let absolute = options.absolute.is_finite() && options.absolute >= 0.0;
    if !positive(options.step) || !positive(options.tolerance) || !absolute || options.directions == 0 {
        return Err(Error::value(
            op,
            format!(
                "a positive step and tolerance, an absolute tolerance of 0 or more and at least one direction expected, got {options:?}"
            ),
        ));
    }
    Ok(())
}

fn random(shape: &[usize], seed: u64, stream: u64, device: &Device) -> Result<Tensor> {
    let normal = Distribution::Normal { mean: 0.0, std: 1.0 };
    Ok(Tensor::random(shape, normal, seed, stream << 40, DType::F64, device)?)
}

/// The index tuple of the element with row-major number `element`.
fn index_of(shape: &[usize], mut element: usize) -> Vec<usize> {
    let mut index: Vec<usize> = shape.iter().rev().map(|&d| (element % d, element /= d).0).collect();
    index.reverse();
    index
}

/// The gradients of parameters, zero where nothing arrived.
fn gathered(parameters: &[Var]) -> Result<Vec<Vec<f64>>> {
    let gradient = |parameter: &Var| match parameter.gradient() {
        Some(gradient) => Ok(gradient.to_vec()?),
        None => Ok(vec![0.0; parameter.tensor().len()]),
    };
    parameters.iter().map(gradient).collect()
}

/// Whether `b` is not `factor * a` up to rounding. Values that are not finite are left to the comparisons.
fn disagrees(a: &[f64], b: &[f64], factor: f64) -> bool {
    let finite = |x: &[f64]| x.iter().all(|v| v.is_finite());
    let largest = a.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let differs = |(x, y): (&f64, &f64)| (factor * x - y).abs() > ROUNDING * largest;
    a.len() != b.len() || finite(a) != finite(b) || (finite(a) && a.iter().zip(b).any(differs))
}

/// Compares the gradients of one input.
fn check_input<F>(problem: &Problem<F>, i: usize, gradient: &[f64], options: &Options) -> Result<InputReport>
where
    F: Fn(&[Var]) -> Result<Var>,
{
    let (shape, values) = (problem.inputs[i].shape(), &problem.values[i]);
    let method = match values.len() <= options.element_limit {
        true => Method::Elements,
        false => Method::Directions,
    };
    let farthest = if method == Method::Elements { 1.0 } else { FARTHEST };
    let unit = |index: usize| values[index].abs().max(SMALLEST_UNIT);
    let is_smooth = |&index: &usize| {
        let point = Point { input: i, index, value: values[index], reach: options.step * unit(index) * farthest };
        !options.is_kink(point)
    };
    let smooth: Vec<Move> = (0..values.len()).filter(is_smooth).map(|index| Move { index, by: unit(index) }).collect();
    let skipped = values.len() - smooth.len();
    let (found, scale) = match method {
        Method::Elements => by_element(problem, i, gradient, &smooth, options)?,
        Method::Directions => by_direction(problem, i, gradient, &smooth, options)?,
    };
    let zero = options.zero_inputs.contains(&i);
    Ok(InputReport::judge(shape, method, &found, skipped, scale, options, zero))
}

type Found = (Vec<difference::Difference>, f64);

fn by_element<F>(problem: &Problem<F>, i: usize, gradient: &[f64], moves: &[Move], options: &Options) -> Result<Found>
where
    F: Fn(&[Var]) -> Result<Var>,
{
    let one = |m: &Move| problem.difference(i, &[*m], gradient, options.step);
    let found = moves.iter().map(one).collect::<Result<Vec<_>>>()?;
    let largest = found.iter().fold(0.0, |m: f64, d| m.max(d.analytic.abs()).max(d.numeric.abs()));
    Ok((found, largest))
}

fn by_direction<F>(problem: &Problem<F>, i: usize, gradient: &[f64], moves: &[Move], options: &Options) -> Result<Found>
where
    F: Fn(&[Var]) -> Result<Var>,
{
    let device = problem.inputs[i].device();
    let mut directions = Vec::new();
    for d in 0..options.directions {
        let stream = 1 + (i * options.directions + d) as u64;
        let normal: Vec<f64> = random(&[gradient.len()], options.seed, stream, device)?.to_vec()?;
        let turned = moves.iter().map(|m| Move { by: m.by * normal[m.index].clamp(-FARTHEST, FARTHEST), ..*m });
        directions.push(turned.collect::<Vec<Move>>());
    }
    let along = |moves: &Vec<Move>| problem.difference(i, moves, gradient, options.step);
    let mut found = directions.iter().map(along).collect::<Result<Vec<_>>>()?;
    // A derivative along a direction of independent components has the gradient's norm, in units of the moves, as its size.
    let norm = |squares: f64| squares.sqrt();
    let analytic = norm(moves.iter().map(|m| (gradient[m.index] * m.by).powi(2)).sum());
    let numeric = norm(found.iter().map(|d| d.numeric.powi(2)).sum::<f64>() / found.len() as f64);
    let scale = analytic.max(numeric);
    for (difference, moves) in found.iter_mut().zip(&directions) {
        let error = difference.error();
        let acceptable = error <= options.tolerance * scale || error <= difference.uncertainty.max(options.absolute);
        if !acceptable && !options.zero_inputs.contains(&i) {
            // Name the element that is to blame, if the error stands out there too.
            let element = problem.localise(i, moves, gradient, options.step)?;
            let error = element.error() * element.unit;
            if error.is_nan() || error > options.tolerance * scale {
                *difference = element;
            }
        }
    }
    Ok((found, scale))
}
