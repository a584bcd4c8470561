//! The windows of an evaluation: consecutive windows at token level, T positions each, the same in every stage of every
//! run. Each token of the text but the first is scored once; the last window is padded. A cap keeps windows that
//! lie evenly over the text.

use std::sync::Arc;

use super::batch::Batch;
use super::token_file::TokenFile;
use super::tokenizer::Tokenizer;
use super::window::{Window, WindowShape};
use crate::error::{Error, Result};

/// Fixed windows over a text and what they score.
#[derive(Clone, Debug)]
pub struct EvaluationSet {
    file: Arc<TokenFile>,
    shape: WindowShape,
    windows: Vec<Window>,
    bytes: u64,
}

impl EvaluationSet {
    /// Windows of `positions` positions over all of `file`, or `most` of them, spread evenly.
    ///
    /// # Errors
    /// Fewer than two tokens (nothing can be scored), no positions, a cap of 0, a file that cannot be read.
    pub fn new(file: Arc<TokenFile>, tokenizer: &Tokenizer, positions: usize, most: Option<usize>) -> Result<Self> {
        if positions == 0 || most == Some(0) {
            return Err(Error::Config(
                "an evaluation needs at least one position and one window: raise --seq-len or the number of windows"
                    .into(),
            ));
        }
        let count = file.token_count();
        if count < 2 {
            return Err(Error::Data(format!(
                "the text to evaluate on has {count} token, and the first one is never scored: give more text"
            )));
        }
        let shape = WindowShape::token_level(positions);
        let total = (count - 1).div_ceil(positions as u64);
        let kept = most.map_or(total, |most| total.min(most as u64));
        let windows = (0..kept).map(|index| {
            // u128: the product of two counts of windows.
            let place = u128::from(index) * u128::from(total) / u128::from(kept);
            let start = place as u64 * positions as u64;
            Window { start, len: (count - start).min(shape.reads() as u64) as usize, epoch: 0 }
        });
        let windows: Vec<Window> = windows.collect();
        let mut bytes = 0;
        let mut ids = Vec::with_capacity(shape.reads());
        for window in &windows {
            ids.clear();
            file.read(window.start + 1..window.start + window.len as u64, &mut ids)?;
            let scored = ids.iter().map(|&id| tokenizer.token_bytes(id) as u64);
            bytes += scored.sum::<u64>();
        }
        Ok(EvaluationSet { file, shape, windows, bytes })
    }

    /// The windows, in the order of the text.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// How many tokens are scored.
    pub fn tokens(&self) -> u64 {
        self.windows.iter().map(|w| w.len as u64 - 1).sum()
    }

    /// How many bytes of text the scored tokens stand for: the divisor of bits per byte.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The windows in batches of `sequences` (the last one smaller) for an embedding table of `rows` rows.
    pub fn batches(&self, sequences: usize, rows: usize) -> impl Iterator<Item = Result<Batch>> + Send + use<> {
        let set = self.clone();
        let starts = (0..set.windows.len()).step_by(sequences.max(1));
        starts.map(move |first| {
            let last = set.windows.len().min(first + sequences.max(1));
            Batch::read(&set.file, &set.windows[first..last], set.shape, &[], rows)
        })
    }
}
