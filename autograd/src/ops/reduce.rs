//! Sums and means over dimensions, `y = sum of x` or `y = sum of x / n`; reduced dimensions keep size 1.
//!
//! `d_x = d_y` or `d_x = d_y / n`, broadcast back without a copy.

use patchgpt_tensor::Tensor;

use crate::function::apply_one;
use crate::{Context, Function, Gradients, Result, Saved, Var};

struct Sum {
    dims: Vec<usize>,
}

struct Mean {
    dims: Vec<usize>,
}

struct SumAll;

impl Function for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].sum(&self.dims)?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_x = saved.d_out(d_outputs)?.broadcast_to(d_inputs.shape(0))?;
        d_inputs.add(0, d_x)
    }
}

impl Function for Mean {
    fn name(&self) -> &'static str {
        "mean"
    }

    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].mean(&self.dims)?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_y = saved.d_out(d_outputs)?;
        let shape = d_inputs.shape(0);
        let count = shape.iter().zip(d_y.shape()).map(|(&from, &to)| if from == to { 1 } else { from });
        let count: usize = count.product();
        let d_x = d_y.affine(1.0 / count as f64, 0.0)?;
        d_inputs.add(0, d_x.broadcast_to(shape)?)
    }
}

impl Function for SumAll {
    fn name(&self) -> &'static str {
        "sum_all"
    }

    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].sum_all()?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_x = saved.d_out(d_outputs)?.broadcast_to(d_inputs.shape(0))?;
        d_inputs.add(0, d_x)
    }
}

impl Var {
    /// Sum over `dims`, which keep size 1.
    pub fn sum(&self, dims: &[usize]) -> Result<Var> {
        apply_one(Sum { dims: dims.to_vec() }, &[self])
    }

    /// Sum of all elements, 0-d.
    pub fn sum_all(&self) -> Result<Var> {
        apply_one(SumAll, &[self])
    }

    /// Mean over `dims`, which keep size 1; NaN over nothing.
    pub fn mean(&self, dims: &[usize]) -> Result<Var> {
        apply_one(Mean { dims: dims.to_vec() }, &[self])
    }
}
