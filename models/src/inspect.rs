//! What a model computes for one sequence, for comparison with another framework: the logits of every position, the loss that
//! transformers computes from `labels = input_ids`, and the gradient of every published tensor. K*T tokens are T positions of
//! K tokens; the first T-1 are scored, each against the K tokens of the next, and the loss is the mean.

use std::collections::HashMap;
use std::path::Path;

use patchgpt_tensor::{DType, Tensor};

use crate::gpt::{Gpt, TrainBatch};
use crate::hub::{self, HubTensor};
use crate::regime::Regime;
use crate::stored::{self, Stored};
use crate::{Error, Result};

/// Logits, loss and gradients of one sequence.
pub struct Inspection<'a> {
    gpt: &'a Gpt,
    tokens: &'a [i32],
    patch: usize,
    logits: Tensor,
    loss: f64,
}

impl<'a> Inspection<'a> {
    /// Runs the model forward and backward over `tokens`, patches of `patch`; the gradients of its parameters are replaced.
    ///
    /// # Errors
    /// A number of tokens that does not divide into at least two patches, or into more than the model has positions; tokens
    /// outside the vocabulary.
    pub fn new(gpt: &'a Gpt, tokens: &'a [i32], patch: usize) -> Result<Inspection<'a>> {
        let (positions, vocabulary) = (tokens.len().checked_div(patch).unwrap_or(0), gpt.config().vocab_size);
        if patch == 0 || !tokens.len().is_multiple_of(patch) {
            return Err(Error::Config(format!(
                "{} tokens do not divide into patches of {patch}: give a multiple of the patch size, which is at least 1",
                tokens.len()
            )));
        }
        if positions < 2 || positions > gpt.config().max_positions {
            return Err(Error::Config(format!(
                "{} tokens in patches of {patch} are {positions} positions; the model takes {} at most, and at least 2 are \
                 needed, since each is scored against the next",
                tokens.len(),
                gpt.config().max_positions
            )));
        }
        if let Some(wrong) = tokens.iter().find(|&&id| usize::try_from(id).map_or(true, |id| id >= vocabulary)) {
            return Err(Error::Config(format!(
                "token {wrong} is not in the model's vocabulary, 0 to {}",
                vocabulary - 1
            )));
        }
        let ids = Tensor::from_slice(tokens, &[1, positions, patch], gpt.device())?;
        let logits = gpt.logits(&ids)?.reshape(&[positions, vocabulary])?;
        let batch = TrainBatch::from_windows(tokens, 1, &Regime::patch(patch), gpt)?;
        gpt.parameters().zero_gradients()?;
        let loss = gpt.loss(&batch, &batch.mean_scale()?)?;
        loss.backward()?;
        Ok(Inspection { gpt, tokens, patch, logits, loss: loss.item()? })
    }

    /// Logits of all T positions, [T, V].
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }

    /// Mean loss of the first T-1 positions.
    pub fn loss(&self) -> f64 {
        self.loss
    }

    /// Every tensor of the published layout with its gradient, in the published shape.
    ///
    /// # Errors
    /// None in practice: the layout is that of the model.
    pub fn gradients(&self) -> Result<Vec<(HubTensor, Tensor)>> {
        let parameters = self.gpt.parameters();
        let gradient = |tensor: HubTensor| {
            let all = parameters.get(&tensor.parameter)?.view(parameters.gradients())?;
            let view = tensor.view(&all)?;
            Ok((tensor, view))
        };
        hub::tensors(self.gpt.config()).into_iter().map(gradient).collect()
    }

    /// Writes `logits` [T, V], `loss` (0-d) and `grad.NAME` for every published tensor, all f32, into one safetensors file; what was
    /// there is replaced at one instant. A tied head is part of the embedding's gradient.
    ///
    /// # Errors
    /// A folder that cannot be written, a full disk.
    pub fn write(&self, path: &Path) -> Result<()> {
        let loss = Tensor::scalar(self.loss, DType::F32, self.gpt.device())?;
        let stored = |tensor: &Tensor| Stored::new(&tensor.cast(DType::F32)?);
        let mut tensors = vec![("logits".to_string(), stored(&self.logits)?), ("loss".into(), stored(&loss)?)];
        for (tensor, gradient) in self.gradients()? {
            tensors.push((format!("grad.{}", tensor.name), stored(&gradient)?));
        }
        let tokens: Vec<String> = self.tokens.iter().map(i32::to_string).collect();
        let metadata =
            [("format", "pt".to_string()), ("tokens", tokens.join(",")), ("patch_size", self.patch.to_string())];
        let metadata: HashMap<String, String> = metadata.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        stored::write(path, tensors, metadata)
    }
}
