//! The elements in row-major order under another shape; `d_x` is `d_y` under the shape of x. Views where strides allow.

use patchgpt_tensor::Tensor;

use crate::function::apply_one;
use crate::{Context, Function, Gradients, Result, Saved, Var};

struct Reshape {
    shape: Vec<usize>,
}

impl Function for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].reshape(&self.shape)?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_x = saved.d_out(d_outputs)?.reshape(d_inputs.shape(0))?;
        d_inputs.add(0, d_x)
    }
}

impl Var {
    /// The elements in row-major order under another shape.
    pub fn reshape(&self, shape: &[usize]) -> Result<Var> {
        apply_one(Reshape { shape: shape.to_vec() }, &[self])
    }
}
