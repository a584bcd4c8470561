//! Linear layer `y = x W^T + b` over the last dimension: x [.., in], W [out, in], b [out], y [.., out].
//!
//! Over N joined rows: `d_x = d_y W`, `d_W = d_y^T x`, `d_b = sum over rows of d_y`.

use patchgpt_tensor::{Destination, Reduction, Tensor};

use super::gelu::Gelu;
use crate::function::{Made, apply_one};
use crate::{Context, Error, Function, Gradients, Result, Saved, Var};

/// A linear layer, of which the output may have been made together with its GELU.
#[derive(Default)]
struct Linear(Made);

/// [rows, width] with the last dimension kept.
fn rows(shape: &[usize]) -> [usize; 2] {
    let width = shape.last().copied().unwrap_or(1);
    [shape[..shape.len().saturating_sub(1)].iter().product(), width]
}

fn check(inputs: &[&Tensor]) -> Result<()> {
    let (x, weight) = (inputs[0].shape(), inputs[1].shape());
    let fits = weight.len() == 2
        && x.last() == Some(&weight[1])
        && inputs.get(2).is_none_or(|bias| bias.shape() == &weight[..1]);
    if fits {
        return Ok(());
    }
    let bias = inputs.get(2).map(|bias| format!(", bias {:?}", bias.shape()));
    Err(Error::value(
        "linear",
        format!(
            "x [.., in], weight [out, in], bias [out] expected, got x {x:?}, weight {weight:?}{}",
            bias.unwrap_or_default()
        ),
    ))
}

impl Function for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        check(inputs)?;
        let weight = inputs[1];
        let mut shape = inputs[0].shape().to_vec();
        let x = inputs[0].reshape(&rows(&shape))?;
        context.save_if(context.needs_gradient(1), &x);
        context.save_if(context.needs_gradient(0), weight);
        let y = self.0.or_else(|| x.linear(weight, inputs.get(2).copied()))?;
        if let Some(width) = shape.last_mut() {
            *width = weight.dim(0);
        }
        Ok(vec![y.view(&shape)?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_y = saved.d_out(d_outputs)?;
        let d_y = d_y.reshape(&rows(d_y.shape()))?;
        if d_inputs.wanted(0) {
            let weight = saved.get(1)?;
            d_inputs.write(0, |d_x| {
                let tensor = &d_x.tensor.view(&rows(d_x.tensor.shape()))?;
                let accumulate = d_x.accumulate;
                d_y.matmul_into(weight, 1.0, Destination { tensor, accumulate })
            })?;
        }
        d_inputs.wide();
        if d_inputs.wanted(1) {
            let x = saved.get(0)?;
            d_inputs.write(1, |d_weight| d_y.t()?.matmul_into(x, 1.0, d_weight))?;
        }
        if d_inputs.wanted(2) {
            d_inputs.write(2, |d_bias| d_y.reduce_into(Reduction::Sum, d_bias))?;
        }
        Ok(())
    }
}

impl Var {
    /// `x W^T + b` over the last dimension: x [.., in], weight [out, in], bias `[out]`, result [.., out].
    pub fn linear(&self, weight: &Var, bias: Option<&Var>) -> Result<Var> {
        apply_one(Linear::default(), &inputs(self, weight, bias))
    }

    /// `gelu(x W^T + b)`: recorded as [`Var::linear`] and then [`Var::gelu`], but made by one primitive, which a device may fuse.
    pub fn linear_gelu(&self, weight: &Var, bias: Option<&Var>) -> Result<Var> {
        let inputs = inputs(self, weight, bias);
        let tensors: Vec<&Tensor> = inputs.iter().map(|input| input.tensor()).collect();
        check(&tensors)?;
        let (sum, activated) = tensors[0].linear_gelu(tensors[1], tensors.get(2).copied())?;
        let sum = apply_one(Linear(Made::new(sum)), &inputs)?;
        apply_one(Gelu(Made::new(activated)), &[&sum])
    }
}

/// x, weight and, if there is one, the bias.
fn inputs<'a>(x: &'a Var, weight: &'a Var, bias: Option<&'a Var>) -> Vec<&'a Var> {
    [Some(x), Some(weight), bias].into_iter().flatten().collect()
}
