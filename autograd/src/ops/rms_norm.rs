//! RMSNorm over the last dimension: `rstd = 1 / sqrt(mean(x^2) + eps)`, `y = x rstd w`; x [.., C], w [C].
//!
//! With `x^ = x rstd` and `g = d_y w`: `d_x = rstd (g - x^ mean(g x^))`, `d_w = sum over rows of d_y x^`.
//! Source: Zhang and Sennrich, arXiv 1910.07467.

use patchgpt_tensor::{RmsNorm as Output, Tensor};

use super::binary::added;
use crate::function::{Made, apply_one};
use crate::{Context, Function, Gradients, Result, Saved, Var};

struct RmsNorm {
    eps: f64,
    made: Made<Output>,
}

impl Function for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        let Output { output, rstd } = self.made.or_else(|| inputs[0].rms_norm(inputs[1], self.eps))?;
        for saved in [inputs[0], inputs[1], &rstd] {
            context.save(saved);
        }
        Ok(vec![output])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let ([x, weight, rstd], d_y) = (saved.tensors()?, saved.d_out(d_outputs)?);
        d_inputs.wide().write_many([0, 1], |[d_x, d_weight]| x.rms_norm_backward(weight, rstd, d_y, d_x, d_weight))
    }
}

impl Var {
    /// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension; weight `[C]`.
    pub fn rms_norm(&self, weight: &Var, eps: f64) -> Result<Var> {
        apply_one(RmsNorm { eps, made: Made::default() }, &[self, weight])
    }

    /// `self + addend`, both of one shape, and its [`Var::rms_norm`], from one kernel where the device has one; values and gradients are those of the two
    /// ops one after the other, to the bit.
    pub fn add_rms_norm(&self, addend: &Var, weight: &Var, eps: f64) -> Result<(Var, Var)> {
        let (sum, normed) = self.tensor().add_rms_norm(addend.tensor(), weight.tensor(), eps)?;
        let sum = added(self, addend, sum)?;
        let normed = apply_one(RmsNorm { eps, made: Made::new(normed) }, &[&sum, weight])?;
        Ok((sum, normed))
    }
}
