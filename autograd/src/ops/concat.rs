//! Tensors one after the other along a dimension; each input's gradient is its slice of `d_y`, a view.

use patchgpt_tensor::Tensor;

use crate::function::apply_one;
use crate::{Context, Function, Gradients, Result, Saved, Var};

struct Concat {
    dim: usize,
    inputs: usize,
}

impl Function for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
        Ok(vec![Tensor::concat(inputs, self.dim)?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_y = saved.d_out(d_outputs)?;
        let mut start = 0;
        for i in 0..self.inputs {
            let length = d_inputs.shape(i)[self.dim];
            d_inputs.add(i, d_y.narrow(self.dim, start, length)?)?;
            start += length;
        }
        Ok(())
    }
}

impl Var {
    /// The values one after the other along `dim`; all other sizes must be equal.
    pub fn concat(vars: &[&Var], dim: usize) -> Result<Var> {
        let inputs = vars.len();
        apply_one(Concat { dim, inputs }, vars)
    }
}
