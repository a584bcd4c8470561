//! Repetition of dimensions of size 1 and of new leading ones, a view; `d_x` is `d_y` summed over them.

use patchgpt_tensor::Tensor;

use crate::function::apply_one;
use crate::{Context, Function, Gradients, Result, Saved, Var};

struct BroadcastTo {
    shape: Vec<usize>,
}

impl Function for BroadcastTo {
    fn name(&self) -> &'static str {
        "broadcast_to"
    }

    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].broadcast_to(&self.shape)?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        d_inputs.add_reduced(0, saved.d_out(d_outputs)?)
    }
}

impl Var {
    /// A view that repeats dimensions of size 1 (and new leading ones) to reach `shape`.
    pub fn broadcast_to(&self, shape: &[usize]) -> Result<Var> {
        apply_one(BroadcastTo { shape: shape.to_vec() }, &[self])
    }
}
