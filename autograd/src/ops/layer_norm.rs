//! LayerNorm over the last dimension: `x^ = (x - mean) / sqrt(var + eps)`, `y = x^ w + b`; x [.., C], w and b [C].
//!
//! With `g = d_y w`: `d_x = rstd (g - mean(g) - x^ mean(g x^))`, `d_w = sum over rows of d_y x^`, `d_b = sum over rows of d_y`.
//! Source: Ba et al., arXiv 1607.06450.

use patchgpt_tensor::{LayerNorm as Output, Tensor};

use super::binary::added;
use crate::function::{Made, apply_one};
use crate::{Context, Function, Gradients, Result, Saved, Var};

struct LayerNorm {
    eps: f64,
    made: Made<Output>,
}

impl Function for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        let Output { output, mean, rstd } =
            self.made.or_else(|| inputs[0].layer_norm(inputs[1], inputs[2], self.eps))?;
        for saved in [inputs[0], inputs[1], &mean, &rstd] {
            context.save(saved);
        }
        Ok(vec![output])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let ([x, weight, mean, rstd], d_y) = (saved.tensors()?, saved.d_out(d_outputs)?);
        d_inputs.wide().write_many([0, 1, 2], |gradients| x.layer_norm_backward(weight, mean, rstd, d_y, gradients))
    }
}

impl Var {
    /// `(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension; weight and bias `[C]`.
    pub fn layer_norm(&self, weight: &Var, bias: &Var, eps: f64) -> Result<Var> {
        apply_one(LayerNorm { eps, made: Made::default() }, &[self, weight, bias])
    }

    /// `self + addend`, both of one shape, and its [`Var::layer_norm`], from one kernel where the device has one; values and gradients are those of the two
    /// ops one after the other, to the bit.
    pub fn add_layer_norm(&self, addend: &Var, weight: &Var, bias: &Var, eps: f64) -> Result<(Var, Var)> {
        let (sum, normed) = self.tensor().add_layer_norm(addend.tensor(), weight.tensor(), bias.tensor(), eps)?;
        let sum = added(self, addend, sum)?;
        let normed = apply_one(LayerNorm { eps, made: Made::new(normed) }, &[&sum, weight, bias])?;
        Ok((sum, normed))
    }
}
