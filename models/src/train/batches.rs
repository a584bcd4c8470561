//! The batches of a stage, step by step: each item is one optimizer step, cut into passes of at most `micro_batch` sequences.
//! All of a step comes at once because the passes share one denominator, the weight of all its valid targets.

use std::sync::Arc;

use super::stages::Stage;
use crate::Result;
use crate::data::{Batch, Sampler, StageShape, TokenFile, Window, WindowShape};

/// The window of a stage.
fn window_shape(stage: &Stage) -> WindowShape {
    WindowShape {
        positions: stage.positions,
        input_patch: stage.regime.input_patch,
        target_patch: stage.regime.target_patch,
    }
}

/// What the sampler needs to know of a stage.
pub(crate) fn stage_shape(stage: &Stage) -> StageShape {
    StageShape { window: window_shape(stage), batch: stage.sequences, windows: stage.steps * stage.sequences as u64 }
}

/// An iterator over the steps of one stage, for a [`crate::data::Loader`].
pub(crate) struct StepBatches {
    file: Arc<TokenFile>,
    sampler: Sampler,
    index: usize,
    sequences: u64,
    micro_batch: usize,
    shape: WindowShape,
    weights: Vec<f64>,
    rows: usize,
    next: u64,
    end: u64,
}

impl StepBatches {
    /// The steps of `stage`, which is number `index` of the sampler, from its step `done` on; `rows` is the number of rows of the
    /// embedding.
    pub(crate) fn new(
        file: Arc<TokenFile>,
        sampler: Sampler,
        index: usize,
        stage: &Stage,
        done: u64,
        rows: usize,
    ) -> Self {
        StepBatches {
            file,
            sampler,
            index,
            sequences: stage.sequences as u64,
            micro_batch: stage.micro_batch,
            shape: window_shape(stage),
            weights: stage.regime.weights(),
            rows,
            next: done,
            end: stage.steps,
        }
    }

    fn read(&mut self, step: u64) -> Result<Vec<Batch>> {
        let indices = step * self.sequences..(step + 1) * self.sequences;
        let windows: Result<Vec<Window>> = indices.map(|index| self.sampler.window(self.index, index)).collect();
        windows?
            .chunks(self.micro_batch)
            .map(|windows| Batch::read(&self.file, windows, self.shape, &self.weights, self.rows))
            .collect()
    }
}

impl Iterator for StepBatches {
    type Item = Result<Vec<Batch>>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.next;
        if step >= self.end {
            return None;
        }
        self.next += 1;
        Some(self.read(step))
    }
}
