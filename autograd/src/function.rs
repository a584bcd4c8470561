//! [`Function`]: an op with its gradient, from inside or outside of this crate, and [`apply`], which runs and records it.

use std::sync::{Arc, Mutex, PoisonError};

use patchgpt_tensor::Tensor;

use crate::graph::{Input, Kind, Node, Work};
use crate::recipe::{Kept, Recipe};
use crate::recording::{self, Recording};
use crate::{Error, Gradients, Result, Var};

/// An op and its gradient. Constants of the op (a scale, a dimension) are fields of the implementing type.
///
/// A function from outside reaches its device's own kernels with [`Device::downcast`](patchgpt_tensor::Device::downcast); here it composes
/// tensor methods:
///
/// ```
/// use patchgpt_autograd::{Context, Function, Gradients, Result, Saved, Var, apply, gradcheck};
/// use patchgpt_tensor::{Binary, Device, Distribution, DType, Tensor};
///
/// /// `x^3`, with the gradient `3 x^2`.
/// struct Cube;
///
/// impl Function for Cube {
///     fn name(&self) -> &'static str {
///         "cube"
///     }
///     fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
///         context.save(inputs[0]);
///         Ok(vec![inputs[0].mul(inputs[0])?.mul(inputs[0])?])
///     }
///     fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
///         let ([x], d_out) = (saved.tensors()?, saved.d_out(d_outputs)?);
///         let slope = x.mul(x)?.affine(3.0, 0.0)?;
///         d_inputs.write(0, |d_x| d_out.binary_into(Binary::Mul, &slope, d_x))
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let x = Tensor::random(&[3, 5], Distribution::Normal { mean: 0.0, std: 1.0 }, 0, 0, DType::F64, &Device::cpu()?)?;
/// let cube = |inputs: &[Var]| Ok(apply(Cube, &[&inputs[0]])?.remove(0));
/// gradcheck(cube, &[x], &gradcheck::Options::default())?.into_result()?;
/// # Ok(()) }
/// ```
pub trait Function: Send + Sync + 'static {
    /// The op's name, for errors.
    fn name(&self) -> &'static str;

    /// Computes the outputs, and saves in `context` what backward will need.
    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>>;

    /// Gives every input that [`Gradients::wanted`] names its gradient, from the gradients of the outputs (`None` for an output that
    /// nothing depends on; never all of them). Gradients of outputs are read-only: other ops may share them.
    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let _ = (saved, d_outputs, d_inputs);
        Err(Error::NoBackward { op: self.name() })
    }

    /// Whether the op has a backward; if not, a tracked input is an error as early as in the forward pass.
    fn is_differentiable(&self) -> bool {
        true
    }

    /// Whether its one output costs little to compute again beside the memory it takes, as that of a norm or an activation does: within
    /// [`recompute_cheap`](crate::recompute_cheap) other ops then do not keep it. The forward pass must give the same bits when it runs again.
    fn is_cheap(&self) -> bool {
        false
    }
}

/// What an op computes where one primitive has made it together with the result of the op before, while each is recorded as a node of its own.
pub(crate) struct Made<T = Tensor>(Mutex<Option<T>>);

impl<T> Default for Made<T> {
    /// Nothing has been made.
    fn default() -> Self {
        Made(Mutex::new(None))
    }
}

impl<T> Made<T> {
    /// `made` is what the forward pass would compute.
    pub(crate) fn new(made: T) -> Self {
        Made(Mutex::new(Some(made)))
    }

    /// What was made, the first time; from then on (recomputation runs a forward pass again), and where nothing was, what `compute` makes.
    pub(crate) fn or_else(&self, compute: impl FnOnce() -> patchgpt_tensor::Result<T>) -> Result<T> {
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(made.map_or_else(compute, Ok)?)
    }
}

/// A tensor and the version of its buffer at the time of saving.
pub(crate) struct SavedTensor {
    tensor: Tensor,
    version: u64,
    /// The input it shares its buffer with.
    input: Option<usize>,
}

impl SavedTensor {
    pub(crate) fn new(tensor: &Tensor, input: Option<usize>) -> SavedTensor {
        SavedTensor { tensor: tensor.clone(), version: tensor.version(), input }
    }

    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Refuses a tensor that has been written since; `what` names it.
    pub(crate) fn check(&self, op: &'static str, what: impl FnOnce() -> String) -> Result<()> {
        let now = self.tensor.version();
        if now == self.version {
            return Ok(());
        }
        let mut what = what();
        if let Some(input) = self.input {
            what += &format!(" (input {input})");
        }
        what += &format!(" of shape {:?}", self.tensor.shape());
        Err(Error::Changed { op, what, then: self.version, now })
    }
}

/// What a forward pass may know of its inputs, and where it saves tensors for backward.
pub struct Context<'a> {
    inputs: &'a [&'a Tensor],
    needs: &'a [bool],
    /// How inputs can be made again; shorter where none can.
    recipes: &'a [Option<Arc<Recipe>>],
    saved: Vec<Option<Kept>>,
}

impl<'a> Context<'a> {
    /// A context in which nothing is saved.
    pub(crate) fn without_backward(inputs: &'a [&'a Tensor]) -> Self {
        Context { inputs, needs: &[], recipes: &[], saved: Vec::new() }
    }

    /// Whether backward will be asked for the gradient of input `i`.
    pub fn needs_gradient(&self, i: usize) -> bool {
        self.needs.get(i).copied().unwrap_or(false)
    }

    /// Whether there will be a backward at all.
    pub fn needs_any_gradient(&self) -> bool {
        self.needs.contains(&true)
    }

    /// Keeps `tensor` (an input, an output, anything) for backward, under the next number from 0 on. No elements are copied; backward refuses to
    /// run if they have been written since.
    pub fn save(&mut self, tensor: &Tensor) {
        self.save_if(true, tensor);
    }

    /// As [`Context::save`] if `condition`; else only takes the number.
    pub fn save_if(&mut self, condition: bool, tensor: &Tensor) {
        if self.needs_any_gradient() {
            self.saved.push(condition.then(|| self.keep(tensor)));
        }
    }

    fn keep(&self, tensor: &Tensor) -> Kept {
        let input = self.inputs.iter().position(|x| Arc::ptr_eq(x.buffer(), tensor.buffer()));
        let recipe = input.and_then(|i| Some((self.inputs[i], self.recipes.get(i)?.as_ref()?)));
        match recipe {
            // The same elements in the same order, so that a view of what is made again holds them.
            Some((x, recipe)) if x.is_contiguous() && tensor.is_contiguous() && x.len() == tensor.len() => {
                Kept::recipe(recipe.clone(), tensor.shape())
            }
            _ => Kept::Tensor(SavedTensor::new(tensor, input)),
        }
    }
}

/// The tensors that a forward pass saved, unchanged since.
pub struct Saved {
    op: &'static str,
    tensors: Vec<Option<Kept>>,
}

impl Saved {
    /// Saved tensor number `k`.
    ///
    /// # Errors
    /// No tensor was saved under this number.
    pub fn get(&self, k: usize) -> Result<&Tensor> {
        match self.tensors.get(k) {
            Some(Some(kept)) => kept.tensor(self.op),
            _ => Err(Error::Number { op: self.op, what: "saved tensor", number: k, count: self.tensors.len() }),
        }
    }

    /// All saved tensors, exactly `N` of them.
    ///
    /// # Errors
    /// More or less than `N` were saved.
    pub fn tensors<const N: usize>(&self) -> Result<[&Tensor; N]> {
        let all: Vec<&Tensor> =
            self.tensors.iter().flatten().map(|kept| kept.tensor(self.op)).collect::<Result<_>>()?;
        let count = all.len();
        all.try_into().map_err(|_| Error::Number { op: self.op, what: "saved tensors up to number", number: N, count })
    }

    /// The gradient of the output of a function that has one output.
    ///
    /// # Errors
    /// More or less than one output.
    pub fn d_out<'d>(&self, d_outputs: &'d [Option<Tensor>]) -> Result<&'d Tensor> {
        match d_outputs {
            [Some(d_out)] => Ok(d_out),
            _ => Err(Error::value(
                self.op,
                format!("the gradient of one output expected, there are {} outputs", d_outputs.len()),
            )),
        }
    }

    /// Checks that nothing has changed, and makes again what was not kept.
    pub(crate) fn prepare(&self) -> Result<()> {
        let numbered = self.tensors.iter().enumerate();
        for (k, kept) in numbered.filter_map(|(k, kept)| Some((k, kept.as_ref()?))) {
            kept.prepare(self.op, || format!("saved tensor {k}"))?;
        }
        Ok(())
    }
}

/// Runs a function on `inputs` and, if one of them is tracked and the thread is recording, records it.
///
/// # Errors
/// Those of the function; a tracked input of a function without backward, or of an integer dtype.
pub fn apply<F: Function>(function: F, inputs: &[&Var]) -> Result<Vec<Var>> {
    let op = function.name();
    let state = recording::state();
    let tracked = state != Recording::Off && inputs.iter().any(|x| x.is_tracked());
    if tracked {
        refuse_untrackable(&function, inputs)?;
    }
    let tensors: Vec<&Tensor> = inputs.iter().map(|x| x.tensor()).collect();
    let needs: Vec<bool> = match state {
        Recording::On => inputs.iter().map(|x| x.is_tracked()).collect(),
        _ => Vec::new(),
    };
    let recipes: Vec<Option<Arc<Recipe>>> = inputs.iter().map(|x| x.recipe().cloned()).collect();
    let mut context = Context { inputs: &tensors, needs: &needs, recipes: &recipes, saved: Vec::new() };
    let outputs = function.forward(&tensors, &mut context)?;
    if !tracked {
        return Ok(outputs.into_iter().map(Var::constant).collect());
    }
    if state == Recording::Rehearsal {
        note_parameters(inputs);
        return Ok(outputs_of(Node::rehearsed(), outputs, None));
    }
    let (function, saved): (Arc<dyn Function>, _) = (Arc::new(function), Saved { op, tensors: context.saved });
    let recipe = match recording::is_remaking() && function.is_cheap() && outputs.len() == 1 {
        true => Recipe::new(function.clone(), inputs),
        false => None,
    };
    let places = inputs.iter().map(|x| Input::new(x.tensor(), x.edge().cloned())).collect();
    let node = Node::op(op, outputs.len(), Work::Function { function, saved }, places);
    Ok(outputs_of(node, outputs, recipe.map(Arc::new)))
}

fn outputs_of(node: Arc<Node>, outputs: Vec<Tensor>, recipe: Option<Arc<Recipe>>) -> Vec<Var> {
    let var = |(i, tensor)| Var::of_node(tensor, node.clone(), i).with_recipe(recipe.clone());
    outputs.into_iter().enumerate().map(var).collect()
}

/// [`apply`] for a function with one output.
pub(crate) fn apply_one<F: Function>(function: F, inputs: &[&Var]) -> Result<Var> {
    let op = function.name();
    apply(function, inputs)?.pop().ok_or(Error::Number { op, what: "output", number: 0, count: 0 })
}

fn refuse_untrackable(function: &dyn Function, inputs: &[&Var]) -> Result<()> {
    let op = function.name();
    if !function.is_differentiable() {
        return Err(Error::NoBackward { op });
    }
    match inputs.iter().position(|x| x.is_tracked() && !x.dtype().is_float()) {
        Some(input) => Err(Error::NotFloat { op, input, dtype: inputs[input].dtype() }),
        None => Ok(()),
    }
}

fn note_parameters(inputs: &[&Var]) {
    for x in inputs {
        if x.edge().is_some_and(|e| matches!(e.node.kind, Kind::Leaf(_))) {
            recording::note_parameter(SavedTensor::new(x.tensor(), None));
        }
    }
}
