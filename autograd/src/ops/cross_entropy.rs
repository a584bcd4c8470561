//! Cross-entropy of one softmax against K targets: `losses[n] = sum over valid k of w_k (lse[n] - logits[n, targets[n, k]])`.
//!
//! With n_w the sum of w_k over the valid k: `d_logits[n, v] = d_losses[n] (n_w e^(logits[n, v] - lse[n]) - sum of w_k with target v)`.
//! logits [.., V], targets i32 [.., K], weights [K], losses [N]. Source: Shao et al., arXiv 2407.12665, section 3.

use patchgpt_tensor::{CrossEntropy as Output, Tensor};

use crate::function::apply_one;
use crate::{Context, Function, Gradients, Result, Saved, Var};

struct CrossEntropy {
    targets: Tensor,
    weights: Tensor,
}

impl Function for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        let Output { losses, lse } = inputs[0].cross_entropy(&self.targets, &self.weights)?;
        for saved in [inputs[0], &lse, &self.targets, &self.weights] {
            context.save(saved);
        }
        Ok(vec![losses])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let ([logits, lse, targets, weights], d_losses) = (saved.tensors()?, saved.d_out(d_outputs)?);
        d_inputs.write(0, |d_logits| logits.cross_entropy_backward(lse, targets, weights, d_losses, d_logits))
    }
}

impl Var {
    /// Losses `[N]` of these logits [.., V] against `targets` i32 [.., K] with `weights` `[K]` (accumulator dtype); a target of
    /// [`IGNORE_INDEX`](patchgpt_tensor::IGNORE_INDEX) is not scored.
    pub fn cross_entropy(&self, targets: &Tensor, weights: &Tensor) -> Result<Var> {
        let (targets, weights) = (targets.clone(), weights.clone());
        apply_one(CrossEntropy { targets, weights }, &[self])
    }
}
