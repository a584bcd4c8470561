//! One optimizer step, as every caller makes it: a training run and a measurement of one do the same work.
//!
//! Gradients to zero; for each pass forward and backward with the gradient of
//! loss = sum over valid targets of weight * -log p(target) / M, M the weight of all valid targets of the step; clipping by the
//! global norm; AdamW.

use patchgpt_tensor::{Error as TensorError, Tensor};

use crate::data::Batch;
use crate::gpt::{Gpt, TrainBatch, mean_scale};
use crate::optimizer::AdamW;
use crate::{Error, Result};

/// What a step found; neither number need be finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Mean loss over the valid targets of the step, before the update.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// Sum of the weights of all valid targets of a step.
pub(super) fn valid_weight(passes: &[Batch]) -> f64 {
    passes.iter().map(|batch| batch.valid_weight).sum()
}

/// One optimizer step over `passes`. `target_weights` are those of the Ko targets of a position; `clip` is the largest global
/// norm of the gradient, 0 for no limit.
///
/// # Errors
/// Batches that do not fit the model, a learning rate that is not finite, a failure of the device; of one that runs out of memory, with
/// what holds it.
pub fn step(
    gpt: &Gpt,
    optimizer: &mut AdamW,
    passes: &[Batch],
    target_weights: &[f64],
    learning_rate: f64,
    clip: f64,
) -> Result<Step> {
    let make = |optimizer: &mut AdamW| {
        let parameters = gpt.parameters();
        let scale = mean_scale(valid_weight(passes), gpt.dtype(), gpt.device())?;
        parameters.zero_gradients()?;
        let mut losses: Vec<Tensor> = Vec::with_capacity(passes.len());
        for batch in passes {
            let loss = gpt.loss(&TrainBatch::new(batch, target_weights, gpt)?, &scale)?;
            loss.backward()?;
            losses.push(loss.tensor().clone());
        }
        let norm = optimizer.step(parameters, learning_rate, Some(clip).filter(|&clip| clip > 0.0))?;
        // Numbers are asked for when all of the step's work has been given to the device.
        let loss = losses.iter().try_fold(0.0, |sum, part| Ok::<_, Error>(sum + part.item()?))?;
        Ok(Step { loss, grad_norm: norm.item()? })
    };
    make(optimizer).map_err(|error| explained(error, gpt, optimizer))
}

/// An error for want of memory with what holds it; any other as it is.
fn explained(error: Error, gpt: &Gpt, optimizer: &AdamW) -> Error {
    let (Error::Tensor(tensor) | Error::Autograd(patchgpt_autograd::Error::Tensor(tensor))) = error else {
        return error;
    };
    let TensorError::OutOfMemory { device, bytes, held, detail } = tensor else { return Error::Tensor(tensor) };
    let mut parts = held_by(gpt, optimizer).to_vec();
    let known: usize = parts.iter().map(|(_, bytes)| bytes).sum();
    parts.push(("activations and what ops work with", held.saturating_sub(known)));
    Error::OutOfMemory { device, bytes, held, detail, parts }
}

/// Names and bytes of what a model in training holds all the time.
pub(crate) fn held_by(gpt: &Gpt, optimizer: &AdamW) -> [(&'static str, usize); 3] {
    let parameters = gpt.parameters();
    let size = |tensor: &Tensor| tensor.len() * tensor.dtype().size();
    let rounded = if parameters.dtype() == parameters.values().dtype() { 0 } else { parameters.dtype().size() };
    [
        ("weights", size(parameters.values()) + parameters.values().len() * rounded),
        ("gradients", size(parameters.gradients())),
        ("moments", size(optimizer.first_moment()) + size(optimizer.second_moment())),
    ]
}
