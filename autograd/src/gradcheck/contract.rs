//! What a backward owes its callers besides right numbers: it adds where something is there already, leaves the gradient it was given
//! alone, serves any choice of tracked inputs, reaches gradients of any strides, and refuses tensors that changed since they were saved.

use patchgpt_tensor::{DType, Tensor};

use super::{Options, ROUNDING, disagrees, gathered};
use crate::{Error, Result, Var};

/// The function under test, and the gradients that it has when all inputs are tracked and used once.
pub(super) struct Contract<'a, F> {
    pub(super) function: &'a F,
    pub(super) inputs: &'a [Tensor],
    pub(super) cotangent: &'a Tensor,
    pub(super) gradients: &'a [Vec<f64>],
    /// Inputs whose gradient is zero by mathematics, so that rounding decides what is left of it.
    pub(super) zero_inputs: &'a [usize],
}

impl<F: Fn(&[Var]) -> Result<Var>> Contract<'_, F> {
    /// What is broken of the parts that `options` ask for, and how often the function ran.
    pub(super) fn check(&self, options: &Options) -> Result<(Vec<String>, usize)> {
        let (mut problems, mut runs, n) = (Vec::new(), 0, self.inputs.len());
        if options.second_use {
            problems.extend(self.second_use()?);
            runs += 2;
        }
        if options.each_alone && n > 1 {
            problems.extend(self.each_alone()?);
            runs += (0..n).filter(|i| !self.zero_inputs.contains(i)).count();
        }
        if options.strided_gradients {
            problems.extend(self.strided_gradients()?);
            runs += 1;
        }
        if options.in_place_writes {
            problems.extend(self.in_place_writes()?);
            runs += n + 1;
        }
        Ok((problems, runs))
    }

    /// Runs the function twice on the same parameters; says whose gradients do not double.
    fn second_use(&self) -> Result<Vec<String>> {
        let parameters: Vec<Var> = self.inputs.iter().cloned().map(Var::parameter).collect();
        let (once, again) = ((self.function)(&parameters)?, (self.function)(&parameters)?);
        once.add(&again)?.backward_with(self.cotangent, false)?;
        let twice = gathered(&parameters)?;
        let wrong = self.wrong(&twice, 2.0);
        let message = |i| {
            format!(
                "input {i}: used twice, its gradient is not twice that of one use; backward must add where a destination accumulates, and leave d_outputs alone"
            )
        };
        Ok(wrong.into_iter().map(message).collect())
    }

    /// Runs the function with one input tracked and the others constant; says whose gradients are others then.
    fn each_alone(&self) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        for i in (0..self.inputs.len()).filter(|i| !self.zero_inputs.contains(i)) {
            let place = |(j, x): (usize, &Tensor)| {
                if i == j { Var::parameter(x.clone()) } else { Var::constant(x.clone()) }
            };
            let vars: Vec<Var> = self.inputs.iter().enumerate().map(place).collect();
            let y = (self.function)(&vars)?;
            if y.is_tracked() {
                y.backward_with(self.cotangent, false)?;
            }
            let alone = gathered(&vars[i..=i])?;
            if disagrees(&self.gradients[i], &alone[0], 1.0) {
                problems.push(format!(
                    "input {i}: tracked alone, it has another gradient than together with the others; backward must not rely on what is saved or wanted for them"
                ));
            }
        }
        Ok(problems)
    }

    /// Runs backward into gradients that are views with gaps of memory full of ones; says which do not hold one more than the gradient,
    /// or what was written beside them.
    fn strided_gradients(&self) -> Result<Vec<String>> {
        let storage: Vec<(Tensor, Tensor)> = self.inputs.iter().map(strided).collect::<Result<_>>()?;
        let given = self.inputs.iter().zip(&storage);
        let parameters: Vec<Var> =
            given.map(|(x, (_, view))| Var::parameter_with_gradient(x.clone(), view.clone())).collect::<Result<_>>()?;
        (self.function)(&parameters)?.backward_with(self.cotangent, false)?;
        let mut problems = Vec::new();
        for (i, ((all, view), gradient)) in storage.iter().zip(self.gradients).enumerate() {
            if gradient.iter().any(|g| !g.is_finite()) {
                continue;
            }
            let minus: Vec<f64> = gradient.iter().map(|g| -g).collect();
            view.add_(&Tensor::from_slice(&minus, view.shape(), view.device())?)?;
            let allowed = ROUNDING * gradient.iter().fold(1.0, |m: f64, g| m.max(g.abs()));
            if all.to_vec::<f64>()?.iter().any(|v| v.is_nan() || (v - 1.0).abs() > allowed) {
                problems
                    .push(format!("input {i}: its gradient did not add up in a view with gaps, or spilt beside it"));
            }
        }
        Ok(problems)
    }

    /// Overwrites each input, then the output, between forward and backward, which must refuse or give the gradients all the same.
    fn in_place_writes(&self) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        for written in (0..self.inputs.len()).map(Some).chain([None]) {
            let inputs: Vec<Tensor> = self.inputs.iter().map(Tensor::copy).collect::<patchgpt_tensor::Result<_>>()?;
            let parameters: Vec<Var> = inputs.iter().cloned().map(Var::parameter).collect();
            let y = (self.function)(&parameters)?;
            let target = written.map_or(y.tensor(), |i| &inputs[i]);
            if target.layout().may_overlap_itself() {
                continue;
            }
            target.fill_(f64::NAN)?;
            match y.backward_with(self.cotangent, false) {
                Err(Error::Changed { .. }) => continue,
                Err(error) => return Err(error),
                Ok(()) => {}
            }
            if !self.wrong(&gathered(&parameters)?, 1.0).is_empty() {
                let what = written.map_or("the output".to_string(), |i| format!("input {i}"));
                problems.push(format!(
                    "{what}: written in place before backward, it changed a gradient unnoticed; save what backward reads with Context::save"
                ));
            }
        }
        Ok(problems)
    }

    /// Inputs whose gradients are not `factor` times those of one plain use.
    fn wrong(&self, found: &[Vec<f64>], factor: f64) -> Vec<usize> {
        let pairs = self.gradients.iter().zip(found).enumerate();
        let is_wrong =
            |&(i, (a, b)): &(usize, (&Vec<f64>, &Vec<f64>))| !self.zero_inputs.contains(&i) && disagrees(a, b, factor);
        pairs.filter(is_wrong).map(|(i, _)| i).collect()
    }
}

/// Memory full of ones, and a view of it with the shape of `x`: the last two dimensions swapped, with gaps.
fn strided(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let mut shape = x.shape().to_vec();
    let rank = shape.len();
    if rank >= 2 {
        shape.swap(rank - 1, rank - 2);
        let length = shape[rank - 1];
        shape[rank - 1] += 2;
        let all = Tensor::full(&shape, 1.0, DType::F64, x.device())?;
        let view = all.narrow(rank - 1, 1, length)?.t()?;
        return Ok((all, view));
    }
    // A column of a matrix, or one of its elements.
    shape.push(3);
    let all = Tensor::full(&shape, 1.0, DType::F64, x.device())?;
    let view = all.narrow(rank, 1, 1)?.squeeze(rank)?;
    Ok((all, view))
}
