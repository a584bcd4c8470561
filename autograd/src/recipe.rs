//! Selective recomputation: outputs of cheap ops that other ops need in backward are not kept, but made again from what the cheap op keeps
//! anyway. Source: Korthikanti et al., arXiv 2205.05198, section 5 (there for attention, which here keeps no scores).

use std::sync::{Arc, OnceLock};

use patchgpt_tensor::Tensor;

use crate::function::{Context, Function, SavedTensor};
use crate::{Error, Result, Var, recording};

/// Longest chain of cheap ops that is made again; what comes after is kept.
const LONGEST: usize = 8;

/// How the output of a cheap op is made again.
pub(crate) struct Recipe {
    function: Arc<dyn Function>,
    inputs: Vec<Kept>,
    /// Cheap ops up to here.
    length: usize,
}

impl Recipe {
    /// The recipe of `function` applied to `inputs`; `None` at the end of a chain that is too long.
    pub(crate) fn new(function: Arc<dyn Function>, inputs: &[&Var]) -> Option<Recipe> {
        let length = 1 + inputs.iter().filter_map(|x| x.recipe()).map(|recipe| recipe.length).max().unwrap_or(0);
        let keep = |(i, x): (usize, &&Var)| match x.recipe() {
            Some(recipe) => Kept::recipe(recipe.clone(), x.shape()),
            None => Kept::Tensor(SavedTensor::new(x.tensor(), Some(i))),
        };
        let inputs = || inputs.iter().enumerate().map(keep).collect();
        (length <= LONGEST).then(|| Recipe { function, inputs: inputs(), length })
    }

    fn make(&self) -> Result<Tensor> {
        let op = self.function.name();
        for (i, input) in self.inputs.iter().enumerate() {
            input.prepare(op, || format!("input {i}, from which its output is made again,"))?;
        }
        let inputs = self.inputs.iter().map(|input| input.tensor(op)).collect::<Result<Vec<_>>>()?;
        let outputs = self.function.forward(&inputs, &mut Context::without_backward(&inputs))?;
        outputs.into_iter().next().ok_or(Error::Number { op, what: "output", number: 0, count: 0 })
    }
}

/// What is held for backward: a tensor, or how to make it again.
pub(crate) enum Kept {
    Tensor(SavedTensor),
    Recipe { recipe: Arc<Recipe>, shape: Vec<usize>, made: OnceLock<Tensor> },
}

impl Kept {
    /// What `recipe` makes, in the shape `shape`.
    pub(crate) fn recipe(recipe: Arc<Recipe>, shape: &[usize]) -> Kept {
        Kept::Recipe { recipe, shape: shape.to_vec(), made: OnceLock::new() }
    }

    /// Refuses a tensor that has been written since; `what` names it. Makes what was not kept.
    pub(crate) fn prepare(&self, op: &'static str, what: impl FnOnce() -> String) -> Result<()> {
        match self {
            Kept::Tensor(saved) => saved.check(op, what),
            Kept::Recipe { made, .. } if made.get().is_some() => Ok(()),
            Kept::Recipe { recipe, shape, made } => {
                let _ = made.set(recipe.make()?.view(shape)?);
                Ok(())
            }
        }
    }

    /// The tensor, once it has been prepared.
    pub(crate) fn tensor(&self, op: &'static str) -> Result<&Tensor> {
        match self {
            Kept::Tensor(saved) => Ok(saved.tensor()),
            Kept::Recipe { made, .. } => {
                made.get().ok_or_else(|| Error::value(op, "a saved tensor that has not been made again yet"))
            }
        }
    }
}

/// Runs `f` so that outputs of cheap ops ([`Function::is_cheap`]: norms, activations) are not kept for backward where another op needs them,
/// but made again when it does. Gradients are the same to the bit; a transformer's activations take about a quarter less
/// memory, for a few percent more time.
///
/// ```
/// use patchgpt_autograd::{Var, recompute_cheap};
/// use patchgpt_tensor::{DType, Device, Tensor};
/// # fn main() -> patchgpt_autograd::Result<()> {
/// let device = Device::cpu()?;
/// let ones = |shape: &[usize]| Tensor::full(shape, 1.0, DType::F32, &device).map(Var::parameter);
/// let (x, up, down) = (ones(&[16, 8])?, ones(&[32, 8])?, ones(&[8, 32])?);
/// // The output of gelu, which `linear` needs for the gradient of `down`, is freed until then.
/// let y = recompute_cheap(|| x.linear(&up, None)?.gelu()?.linear(&down, None))?;
/// y.sum_all()?.backward()?;
/// # Ok(()) }
/// ```
pub fn recompute_cheap<R>(f: impl FnOnce() -> R) -> R {
    recording::remaking(f)
}
