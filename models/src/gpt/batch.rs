//! What one forward and backward pass reads, on the device: ids [B, T, Ki] with their inverted index, targets [B, T, Ko] and
//! their weights [Ko]. Position i of a window x reads x[i*Ki .. (i+1)*Ki] and is scored against x[(i+1)*Ki + k], k < Ko.

use patchgpt_tensor::{DType, Device, IGNORE_INDEX, ScatterIndex, Tensor};

use super::Gpt;
use crate::data;
use crate::regime::Regime;
use crate::{Error, Result};

/// Ids on the device, with the inverse of them that makes the embedding's gradient deterministic.
#[derive(Clone)]
pub struct Inputs {
    ids: Tensor,
    index: ScatterIndex,
}

impl Inputs {
    /// Ids of `sequences` windows of `positions` patches, B*T*K in all, each in `0..vocabulary`.
    ///
    /// # Errors
    /// A number of ids that these sizes do not divide, ids outside the vocabulary.
    pub fn new(ids: &[i32], sequences: usize, positions: usize, vocabulary: usize, device: &Device) -> Result<Inputs> {
        let index = ScatterIndex::new(ids, vocabulary, device)?;
        Inputs::with_index(ids, sequences, positions, index, device)
    }

    fn with_index(
        ids: &[i32],
        sequences: usize,
        positions: usize,
        index: ScatterIndex,
        device: &Device,
    ) -> Result<Inputs> {
        let rows = sequences * positions;
        if rows == 0 || ids.is_empty() || !ids.len().is_multiple_of(rows) {
            return Err(Error::Data(format!(
                "{} ids do not divide into {sequences} sequences of {positions} positions",
                ids.len()
            )));
        }
        let ids = Tensor::from_slice(ids, &[sequences, positions, ids.len() / rows], device)?;
        Ok(Inputs { ids, index })
    }

    /// Ids [B, T, K] and their inverse in tensors that are written again for every step; the caller checks what it writes.
    pub(crate) fn over(ids: Tensor, index: ScatterIndex) -> Inputs {
        Inputs { ids, index }
    }

    /// i32 [B, T, K].
    pub fn ids(&self) -> &Tensor {
        &self.ids
    }

    /// Where each id stands.
    pub fn index(&self) -> &ScatterIndex {
        &self.index
    }
}

/// A (micro-)batch on the device.
#[derive(Clone)]
pub struct TrainBatch {
    inputs: Inputs,
    targets: Tensor,
    target_weights: Tensor,
    valid_weight: f64,
}

impl TrainBatch {
    /// A batch from the loader; `weights` are those of the Ko targets, as [`Regime::weights`] gives them.
    ///
    /// # Errors
    /// Weights of another number than Ko, ids outside the vocabulary of `gpt`.
    pub fn new(batch: &data::Batch, weights: &[f64], gpt: &Gpt) -> Result<TrainBatch> {
        let (device, positions) = (gpt.device(), batch.shape.positions);
        let index = ScatterIndex::from_parts(&batch.index.order, &batch.index.offsets, device)?;
        let inputs = Inputs::with_index(&batch.inputs, batch.sequences, positions, index, device)?;
        TrainBatch::assemble(inputs, &batch.targets, weights, batch.valid_weight, gpt.dtype())
    }

    /// A batch of `sequences` windows of equal length, one after the other: T*Ki + Ko tokens each, T as many as fit.
    ///
    /// # Errors
    /// A number of tokens that does not make such windows, ids outside the vocabulary of `gpt`.
    pub fn from_windows(windows: &[i32], sequences: usize, regime: &Regime, gpt: &Gpt) -> Result<TrainBatch> {
        let (ki, ko) = (regime.input_patch, regime.target_patch);
        let len = windows.len().checked_div(sequences).unwrap_or(0);
        let positions = len.saturating_sub(ko).checked_div(ki).unwrap_or(0);
        if positions == 0 || ko == 0 || sequences * (positions * ki + ko) != windows.len() {
            return Err(Error::Data(format!(
                "{} tokens do not make {sequences} windows of T*{ki} + {ko} tokens with at least one position",
                windows.len()
            )));
        }
        let mut ids = Vec::with_capacity(sequences * positions * ki);
        let mut targets = Vec::with_capacity(sequences * positions * ko);
        for window in windows.chunks_exact(len) {
            ids.extend_from_slice(&window[..positions * ki]);
            for position in 1..=positions {
                targets.extend_from_slice(&window[position * ki..position * ki + ko]);
            }
        }
        let inputs = Inputs::new(&ids, sequences, positions, gpt.config().vocab_size, gpt.device())?;
        TrainBatch::with_targets(inputs, &targets, &regime.weights(), gpt.dtype())
    }

    /// A batch of given inputs and targets [B, T, Ko], [`IGNORE_INDEX`] where nothing is scored.
    ///
    /// # Errors
    /// Targets of another number, no weights, a dtype other than f32, f64 and bf16.
    pub fn with_targets(inputs: Inputs, targets: &[i32], weights: &[f64], dtype: DType) -> Result<TrainBatch> {
        let scored = targets.iter().zip(weights.iter().cycle());
        let valid_weight = scored.filter(|&(&t, _)| t != IGNORE_INDEX).map(|(_, w)| w).sum();
        TrainBatch::assemble(inputs, targets, weights, valid_weight, dtype)
    }

    fn assemble(
        inputs: Inputs,
        targets: &[i32],
        weights: &[f64],
        valid_weight: f64,
        dtype: DType,
    ) -> Result<TrainBatch> {
        let (b, t, device) = (inputs.ids.dim(0), inputs.ids.dim(1), inputs.ids.device().clone());
        if weights.is_empty() || targets.len() != b * t * weights.len() {
            return Err(Error::Data(format!(
                "{} targets for {b} sequences of {t} positions and {} target weights: {} expected",
                targets.len(),
                weights.len(),
                b * t * weights.len()
            )));
        }
        let target_weights = Tensor::from_slice(weights, &[weights.len()], &device)?;
        Ok(TrainBatch {
            targets: Tensor::from_slice(targets, &[b, t, weights.len()], &device)?,
            target_weights: target_weights.cast(dtype.accumulator())?,
            inputs,
            valid_weight,
        })
    }

    /// Ids and their inverse.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// i32 [B, T, Ko].
    pub fn targets(&self) -> &Tensor {
        &self.targets
    }

    /// Weights of the Ko targets, [Ko].
    pub fn target_weights(&self) -> &Tensor {
        &self.target_weights
    }

    /// Sum of the weights of the targets that are scored.
    pub fn valid_weight(&self) -> f64 {
        self.valid_weight
    }

    /// The factor that makes the loss of this batch alone a mean: 1 / valid weight, 0-d.
    ///
    /// # Errors
    /// As [`mean_scale`].
    pub fn mean_scale(&self) -> Result<Tensor> {
        mean_scale(self.valid_weight, self.target_weights.dtype(), self.targets.device())
    }
}

/// The factor that makes a sum of losses a mean: 1 / `valid_weight`, the sum of the weights of all targets of a step that are
/// scored, all micro-batches together; 0-d, of the accumulator type of `dtype`.
///
/// # Errors
/// Nothing is scored; a failure of the device.
pub fn mean_scale(valid_weight: f64, dtype: DType, device: &Device) -> Result<Tensor> {
    Ok(Tensor::scalar(mean_factor(valid_weight)?, dtype.accumulator(), device)?)
}

/// [`mean_scale`] as a number.
pub(crate) fn mean_factor(valid_weight: f64) -> Result<f64> {
    match valid_weight > 0.0 && valid_weight.is_finite() {
        true => Ok(1.0 / valid_weight),
        false => Err(Error::Data(format!(
            "the targets of a step weigh {valid_weight} together: at least one of them must be scored"
        ))),
    }
}
