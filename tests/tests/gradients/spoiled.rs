//! A case whose forward is right and whose backward makes a mistake with the right gradients.

use std::sync::Arc;

use patchgpt_autograd::{Context, Function, Gradients, Result, Saved, Var, apply, no_grad};
use patchgpt_tensor::Tensor;
use patchgpt_tests::cases::Case;

/// What a backward does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mistake {
    /// Nothing.
    None,
    /// A factor of 2 is missing.
    DroppedFactor,
    /// All of it is off by this factor.
    Slightly(f64),
    /// The last two dimensions of the gradient are swapped (of a vector: it is reversed).
    Transposed,
    /// Every element has its neighbour's gradient.
    OffByOne,
    /// The destination is overwritten where it accumulates.
    MissingAccumulation,
    /// One element has the wrong sign.
    OneElement(usize),
    /// One element is not a number.
    NotANumber(usize),
    /// The gradient is that of the mistake of this number in the case's table.
    Named(usize),
}

/// The op of a case with a spoiled gradient of its input `input`.
struct Spoiled {
    case: Arc<Case>,
    input: usize,
    mistake: Mistake,
}

/// `case` as a function whose backward makes `mistake` with the gradient of input `input`.
pub(crate) fn spoiled(case: &Arc<Case>, input: usize, mistake: Mistake) -> impl Fn(&[Var]) -> Result<Var> + use<> {
    let case = case.clone();
    move |x| {
        let function = Spoiled { case: case.clone(), input, mistake };
        Ok(apply(function, &x.iter().collect::<Vec<_>>())?.remove(0))
    }
}

impl Function for Spoiled {
    fn name(&self) -> &'static str {
        "spoiled"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        inputs.iter().for_each(|x| context.save(x));
        let vars: Vec<Var> = inputs.iter().map(|x| Var::constant((*x).clone())).collect();
        // A copy: an output that shares memory with an input is not what is tested here.
        Ok(vec![no_grad(|| (self.case.run)(&vars))?.tensor().copy()?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_y = saved.d_out(d_outputs)?;
        let tensors = (0..self.case.inputs.len()).map(|i| saved.get(i).cloned()).collect::<Result<Vec<_>>>()?;
        for (i, gradient) in gradients(&self.case, &tensors, d_y, Mistake::None)?.into_iter().enumerate() {
            if i != self.input {
                d_inputs.add(i, gradient)?;
                continue;
            }
            match self.mistake {
                Mistake::MissingAccumulation => d_inputs.write(i, |d| d.tensor.copy_(&gradient))?,
                Mistake::Named(_) => {
                    d_inputs.add(i, gradients(&self.case, &tensors, d_y, self.mistake)?.swap_remove(i))?;
                }
                mistake => d_inputs.add(i, change(&gradient, mistake)?)?,
            }
        }
        Ok(())
    }
}

/// The gradients of a case at `tensors`, or those that one of its named mistakes has.
pub(crate) fn gradients(case: &Case, tensors: &[Tensor], d_y: &Tensor, mistake: Mistake) -> Result<Vec<Tensor>> {
    let vars: Vec<Var> = tensors.iter().cloned().map(Var::parameter).collect();
    let y = match mistake {
        Mistake::Named(n) => (case.check.mistakes[n].1)(&vars)?,
        _ => (case.run)(&vars)?,
    };
    y.backward_with(d_y, false)?;
    let gradient = |x: &Var| match x.gradient() {
        Some(gradient) => Ok(gradient),
        None => Ok(Tensor::zeros(x.shape(), x.dtype(), x.tensor().device())?),
    };
    vars.iter().map(gradient).collect()
}

/// The gradient with a mistake made in it.
pub(crate) fn change(gradient: &Tensor, mistake: Mistake) -> Result<Tensor> {
    let mut values = gradient.to_vec::<f64>()?;
    match mistake {
        Mistake::DroppedFactor => values.iter_mut().for_each(|v| *v *= 0.5),
        Mistake::Slightly(by) => values.iter_mut().for_each(|v| *v *= 1.0 + by),
        Mistake::OffByOne if !values.is_empty() => values.rotate_right(1),
        Mistake::OneElement(i) => values[i] = -values[i],
        Mistake::NotANumber(i) => values[i] = f64::NAN,
        Mistake::Transposed if gradient.rank() < 2 => values.reverse(),
        Mistake::Transposed => values = gradient.t()?.to_vec()?,
        _ => {}
    }
    Ok(Tensor::from_slice(&values, gradient.shape(), gradient.device())?)
}
