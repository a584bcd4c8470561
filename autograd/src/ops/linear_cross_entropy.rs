//! The head and its loss together: `loss = scale * sum of cross_entropy(x W^T)`; x [.., C], W [V, C], targets [.., K], loss 0-d.
//!
//! Logits exist for a chunk of rows at a time. Where gradients are needed, forward computes `d_x` and `d_W` of the loss while it has the logits, and saves
//! them; backward multiplies by `d_loss` and adds.

use patchgpt_tensor::{Binary, Destination, Tensor};

use crate::function::apply_one;
use crate::{Context, Function, Gradients, Result, Saved, Var};

struct LinearCrossEntropy {
    targets: Tensor,
    target_weights: Tensor,
    scale: Tensor,
}

impl Function for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        let mut gradients = [None, None];
        for (i, gradient) in gradients.iter_mut().enumerate() {
            if context.needs_gradient(i) {
                let x = inputs[i];
                // The weight's gradient is summed over chunks.
                let dtype = if i == 1 { x.dtype().accumulator() } else { x.dtype() };
                *gradient = Some(Tensor::empty(x.shape(), dtype, x.device())?);
            }
        }
        let [d_x, d_weight] = gradients.each_ref().map(|g| g.as_ref().map(Destination::write));
        let (targets, weights) = (&self.targets, &self.target_weights);
        let losses = inputs[0].linear_cross_entropy(inputs[1], targets, weights, &self.scale, d_x, d_weight)?;
        let loss = losses.sum_all()?;
        loss.mul_(&self.scale)?;
        for gradient in &gradients {
            context.save_if(gradient.is_some(), gradient.as_ref().unwrap_or(&loss));
        }
        Ok(vec![loss])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_loss = saved.d_out(d_outputs)?;
        for i in 0..2 {
            if d_inputs.wanted(i) {
                let gradient = saved.get(i)?;
                let d_loss = d_loss.cast(gradient.dtype())?;
                d_inputs.wide().write(i, |d| {
                    if d.tensor.dtype() == gradient.dtype() {
                        return gradient.binary_into(Binary::Mul, &d_loss, d);
                    }
                    let scaled = gradient.mul(&d_loss)?.cast(d.tensor.dtype())?;
                    if d.accumulate { d.tensor.add_(&scaled) } else { d.tensor.copy_(&scaled) }
                })?;
            }
        }
        Ok(())
    }
}

impl Var {
    /// `scale * sum(cross_entropy(x @ weight^T))`, 0-d, in the accumulator dtype: this value is x [.., C], weight [V, C], targets i32 [.., K], target weights `[K]`,
    /// scale 0-d (1 / M for the mean over M targets).
    pub fn linear_cross_entropy(
        &self,
        weight: &Var,
        targets: &Tensor,
        target_weights: &Tensor,
        scale: &Tensor,
    ) -> Result<Var> {
        let function = LinearCrossEntropy {
            targets: targets.clone(),
            target_weights: target_weights.clone(),
            scale: scale.clone(),
        };
        apply_one(function, &[self, weight])
    }
}
