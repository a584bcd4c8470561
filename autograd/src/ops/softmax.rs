//! Softmax over the last dimension: `y_i = e^(x_i - max) / sum_j e^(x_j - max)`.
//!
//! `d_x_i = y_i (d_y_i - sum_j d_y_j y_j)`; saves its output.

use patchgpt_tensor::Tensor;

use crate::function::apply_one;
use crate::{Context, Function, Gradients, Result, Saved, Var};

struct Softmax;

impl Function for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        let y = inputs[0].softmax()?;
        context.save(&y);
        Ok(vec![y])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let ([y], d_y) = (saved.tensors()?, saved.d_out(d_outputs)?);
        d_inputs.write(0, |d_x| y.softmax_backward(d_y, d_x))
    }
}

impl Var {
    /// `e^(x_i - max) / sum_j e^(x_j - max)` over the last dimension.
    pub fn softmax(&self) -> Result<Var> {
        apply_one(Softmax, &[self])
    }
}
