//! GELU in its tanh form: `y = x/2 (1 + tanh(u))`, `u = sqrt(2/pi) (x + 0.044715 x^3)`.
//!
//! `d_x = d_y (1/2 (1 + tanh u) + x/2 (1 - tanh^2 u) sqrt(2/pi) (1 + 3 * 0.044715 x^2))`. Source: Hendrycks and Gimpel, arXiv 1606.08415.

use patchgpt_tensor::Tensor;

use crate::function::{Made, apply_one};
use crate::{Context, Function, Gradients, Result, Saved, Var};

/// GELU, of which the output may have been made by the op before it.
#[derive(Default)]
pub(super) struct Gelu(pub(super) Made);

impl Function for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        context.save(inputs[0]);
        Ok(vec![self.0.or_else(|| inputs[0].gelu())?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let ([x], d_y) = (saved.tensors()?, saved.d_out(d_outputs)?);
        d_inputs.write(0, |d_x| x.gelu_backward(d_y, d_x))
    }
}

impl Var {
    /// `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))` of every element.
    pub fn gelu(&self) -> Result<Var> {
        apply_one(Gelu::default(), &[self])
    }
}
