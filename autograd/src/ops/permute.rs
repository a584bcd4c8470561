//! Dimensions in another order, a view: `y` has dimension `order[d]` of x as its dimension d; `d_x` is `d_y` in the inverse order.

use patchgpt_tensor::Tensor;

use crate::function::apply_one;
use crate::{Context, Error, Function, Gradients, Result, Saved, Var};

struct Permute {
    order: Vec<usize>,
}

impl Function for Permute {
    fn name(&self) -> &'static str {
        "permute"
    }

    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].permute(&self.order)?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let mut inverse = vec![0; self.order.len()];
        for (to, &from) in self.order.iter().enumerate() {
            inverse[from] = to;
        }
        let d_x = saved.d_out(d_outputs)?.permute(&inverse)?;
        d_inputs.add(0, d_x)
    }
}

impl Var {
    /// A view with dimensions in the order `order`.
    pub fn permute(&self, order: &[usize]) -> Result<Var> {
        apply_one(Permute { order: order.to_vec() }, &[self])
    }

    /// A view with two dimensions swapped.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Var> {
        let mut order: Vec<usize> = (0..self.rank()).collect();
        if a >= order.len() || b >= order.len() {
            return Err(Error::value("transpose", format!("no dimensions {a} and {b} in {:?}", self.shape())));
        }
        order.swap(a, b);
        apply_one(Permute { order }, &[self])
    }
}
