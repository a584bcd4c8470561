//! SwiGLU, `y = silu(gate) up`, of x [.., 2F] with gate in its first and up in its last F columns; y [.., F].
//!
//! With s = sigmoid(gate): `d_gate = d_y up s (1 + gate (1 - s))`, `d_up = d_y gate s`. Source: Shazeer, arXiv 2002.05202.

use patchgpt_tensor::Tensor;

use crate::function::apply_one;
use crate::{Context, Function, Gradients, Result, Saved, Var};

struct SwiGlu;

impl Function for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        context.save(inputs[0]);
        Ok(vec![inputs[0].swiglu()?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let ([x], d_y) = (saved.tensors()?, saved.d_out(d_outputs)?);
        d_inputs.write(0, |d_x| x.swiglu_backward(d_y, d_x))
    }
}

impl Var {
    /// `silu(gate) * up` with gate the first and up the second half of the last dimension: [.., 2F] to [.., F].
    pub fn swiglu(&self) -> Result<Var> {
        apply_one(SwiGlu, &[self])
    }
}
