//! [`Var`]: a tensor plus, if it is tracked, its place in the graph.

use std::fmt;
use std::sync::Arc;

use patchgpt_tensor::{DType, Device, Tensor};

use crate::graph::{Edge, Kind, Node};
use crate::recipe::Recipe;
use crate::{Error, Result, backward};

/// A value of a computation: a [`Tensor`] and, if it is tracked, its place in the graph. Cheap to clone.
///
/// Ops on tracked values record themselves (see [`no_grad`](crate::no_grad)); [`Var::backward`] walks the record.
#[derive(Clone)]
pub struct Var {
    tensor: Tensor,
    edge: Option<Edge>,
    /// How the value is made again, if it need not be kept.
    recipe: Option<Arc<Recipe>>,
}

impl Var {
    /// A value without a gradient.
    pub fn constant(tensor: Tensor) -> Var {
        Var { tensor, edge: None, recipe: None }
    }

    /// A parameter; memory for its gradient is made by the first backward that reaches it.
    pub fn parameter(tensor: Tensor) -> Var {
        Var::of_node(tensor, Node::leaf(None), 0)
    }

    /// A parameter whose gradient lives in `gradient`, typically a view of flat storage. Backward adds to it; filling it with zeros before the first
    /// pass and between steps is the caller's part (see [`Var::zero_gradient`]).
    ///
    /// # Errors
    /// A gradient of another shape or device, of a dtype that is neither the tensor's nor its accumulator's, or that overlaps itself.
    pub fn parameter_with_gradient(tensor: Tensor, gradient: Tensor) -> Result<Var> {
        let op = "parameter_with_gradient";
        let fits = gradient.shape() == tensor.shape()
            && (gradient.dtype() == tensor.dtype() || gradient.dtype() == tensor.dtype().accumulator())
            && gradient.device() == tensor.device();
        if !fits || !tensor.dtype().is_float() || gradient.layout().may_overlap_itself() {
            let show = |t: &Tensor| format!("{} {:?} on {}", t.dtype(), t.layout(), t.device());
            return Err(Error::value(
                op,
                format!(
                    "a floating-point tensor and a gradient of its shape, dtype and device expected, got {} and {}",
                    show(&tensor),
                    show(&gradient)
                ),
            ));
        }
        Ok(Var::of_node(tensor, Node::leaf(Some(gradient)), 0))
    }

    /// An output of a node.
    pub(crate) fn of_node(tensor: Tensor, node: Arc<Node>, output: usize) -> Var {
        Var { tensor, edge: Some(Edge { node, output }), recipe: None }
    }

    /// The same value, which can be made again.
    pub(crate) fn with_recipe(self, recipe: Option<Arc<Recipe>>) -> Var {
        Var { recipe, ..self }
    }

    pub(crate) fn recipe(&self) -> Option<&Arc<Recipe>> {
        self.recipe.as_ref()
    }

    /// A value at a known place.
    pub(crate) fn at(tensor: Tensor, edge: Option<Edge>) -> Var {
        Var { tensor, edge, recipe: None }
    }

    pub(crate) fn edge(&self) -> Option<&Edge> {
        self.edge.as_ref()
    }

    /// The tensor.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Sizes of the dimensions.
    pub fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    /// Size of dimension `d`; 1 beyond the rank.
    pub fn dim(&self, d: usize) -> usize {
        self.tensor.dim(d)
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.tensor.rank()
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    /// Where the value lives.
    pub fn device(&self) -> &Device {
        self.tensor.device()
    }

    /// Whether the value depends on a parameter through recorded ops.
    pub fn is_tracked(&self) -> bool {
        self.edge.is_some()
    }

    /// The same value as a constant.
    pub fn detach(&self) -> Var {
        Var::constant(self.tensor.clone())
    }

    /// The single element as f64. Waits for the device.
    ///
    /// # Errors
    /// More or less than one element.
    pub fn item(&self) -> Result<f64> {
        Ok(self.tensor.item()?)
    }

    /// The gradient that has gathered in this parameter. `None` before the first backward, and for anything that is not a parameter.
    pub fn gradient(&self) -> Option<Tensor> {
        match &self.edge.as_ref()?.node.kind {
            Kind::Leaf(leaf) => leaf.gradient().clone(),
            _ => None,
        }
    }

    /// Sets the gradient that has gathered in this parameter to zero. A tensor got from [`Var::gradient`] before keeps its elements, unless its
    /// memory was given with [`Var::parameter_with_gradient`].
    ///
    /// # Errors
    /// The value is not a parameter.
    pub fn zero_gradient(&self) -> Result<()> {
        let Some(Kind::Leaf(leaf)) = self.edge.as_ref().map(|e| &e.node.kind) else {
            return Err(Error::value("zero_gradient", "only parameters gather gradients, and this value is none"));
        };
        let mut slot = leaf.gradient();
        if let Some(gradient) = slot.as_ref() {
            if leaf.given || backward::is_exclusive(gradient) {
                gradient.fill_(0.0)?;
            } else {
                *slot = Some(Tensor::zeros(gradient.shape(), gradient.dtype(), gradient.device())?);
            }
        }
        Ok(())
    }

    /// Adds the gradient of this 0-d value to every parameter it depends on, and frees what was saved on the way.
    ///
    /// # Errors
    /// The value is not 0-d or not tracked; see [`Var::backward_with`].
    pub fn backward(&self) -> Result<()> {
        if self.rank() != 0 {
            return Err(Error::NotScalar { shape: self.shape().to_vec() });
        }
        self.backward_with(&Tensor::scalar(1.0, self.dtype(), self.device())?, false)
    }

    /// Adds the gradient of `sum(d_out * self)` to every parameter that this value depends on; `d_out` has this value's shape and dtype.
    ///
    /// Unless `keep_graph`, what was saved for backward is freed as soon as it has been used, and a second backward through the same ops is an error.
    /// After an error the gradients of parameters are unspecified.
    ///
    /// # Errors
    /// The value is not tracked; `d_out` does not fit; a saved tensor was written in place since; an op has no backward or gave a gradient that
    /// does not fit; an earlier backward freed the graph.
    pub fn backward_with(&self, d_out: &Tensor, keep_graph: bool) -> Result<()> {
        let edge = self.edge.as_ref().ok_or(Error::Untracked)?;
        if d_out.shape() != self.shape() || d_out.dtype() != self.dtype() || d_out.device() != self.device() {
            return Err(Error::value(
                "backward",
                format!(
                    "a gradient {} {:?} on {} expected, got {} {:?} on {}",
                    self.dtype(),
                    self.shape(),
                    self.device(),
                    d_out.dtype(),
                    d_out.shape(),
                    d_out.device()
                ),
            ));
        }
        backward::run(edge, d_out.clone(), keep_graph)
    }
}

impl fmt::Debug for Var {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Var").field("tensor", &self.tensor).field("tracked", &self.is_tracked()).finish()
    }
}
