//! Rotary position embedding of x [B, T, H, D]: pairs (i, i + D/2) of every head turn by the angle of their position.
//!
//! A rotation's gradient is the inverse rotation of `d_y`. cos and sin [T, D/2] are constants. Source: Su et al., arXiv 2104.09864.

use patchgpt_tensor::Tensor;

use crate::function::apply_one;
use crate::{Context, Function, Gradients, Result, Saved, Var};

struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Function for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        context.save(&self.cos);
        context.save(&self.sin);
        Ok(vec![inputs[0].rope(&self.cos, &self.sin, false)?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let ([cos, sin], d_y) = (saved.tensors()?, saved.d_out(d_outputs)?);
        d_inputs.add(0, d_y.rope(cos, sin, true)?)
    }
}

impl Var {
    /// Rotates every head of [B, T, H, D] by the angles of its position; see [`Tensor::rope_table`] for cos and sin [T, D/2].
    pub fn rope(&self, cos: &Tensor, sin: &Tensor) -> Result<Var> {
        let (cos, sin) = (cos.clone(), sin.clone());
        apply_one(Rope { cos, sin }, &[self])
    }
}
