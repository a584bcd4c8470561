//! A slice `start..start + length` along a dimension, a view; `d_x` is `d_y` inside the slice and zero outside.
//! Several slices of one tensor share one gradient, each adding to its own part.

use patchgpt_tensor::Tensor;

use crate::function::apply_one;
use crate::{Context, Function, Gradients, Result, Saved, Var};

struct Narrow {
    dim: usize,
    start: usize,
    length: usize,
}

impl Function for Narrow {
    fn name(&self) -> &'static str {
        "narrow"
    }

    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].narrow(self.dim, self.start, self.length)?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_y = saved.d_out(d_outputs)?;
        d_inputs.write(0, |d_x| {
            let slice = d_x.tensor.narrow(self.dim, self.start, self.length)?;
            if d_x.accumulate {
                return slice.add_(d_y);
            }
            d_x.tensor.fill_(0.0)?;
            slice.copy_(d_y)
        })
    }
}

impl Var {
    /// A view of the elements `start..start + length` along `dim`.
    pub fn narrow(&self, dim: usize, start: usize, length: usize) -> Result<Var> {
        apply_one(Narrow { dim, start, length }, &[self])
    }
}
