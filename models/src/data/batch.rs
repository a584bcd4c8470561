//! A batch: inputs `[B, T, Ki]`, targets `[B, T, Ko]` with -100 where there is nothing to predict, and the inverted index
//! of the input ids (positions sorted by id), from which the gradient of the embedding is summed in a fixed order.
//! The bag-entropy floor: a row with targets x_k and weights w_k has sum w_k * -log p(x_k) >= n * H(p), where n is the
//! sum of its valid weights and p(v) = (sum of w_k with x_k = v) / n. It is log K where all K targets differ.

use std::sync::Arc;

use patchgpt_tensor::IGNORE_INDEX;

use super::sampler::Sampler;
use super::token_file::TokenFile;
use super::window::{Window, WindowShape};
use crate::error::{Error, Result};

/// Positions of a list of ids, stably sorted by id, in compressed rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvertedIndex {
    /// `[N]`: the positions of id v are `order[offsets[v]..offsets[v + 1]]`, ascending.
    pub order: Vec<i32>,
    /// `[rows + 1]`.
    pub offsets: Vec<i32>,
}

impl InvertedIndex {
    /// The index of `ids` over an embedding table of `rows` rows, by counting sort.
    ///
    /// # Errors
    /// An id outside `0..rows`, more than `i32::MAX` ids.
    pub fn new(ids: &[i32], rows: usize) -> Result<Self> {
        if i32::try_from(ids.len()).is_err() {
            return Err(Error::Config(format!(
                "a batch of {} tokens is too large: at most {} can be indexed; use a smaller --batch-size",
                ids.len(),
                i32::MAX
            )));
        }
        let mut offsets = vec![0i32; rows + 1];
        for &id in ids {
            match usize::try_from(id) {
                Ok(id) if id < rows => offsets[id + 1] += 1,
                _ => {
                    return Err(Error::Data(format!(
                        "the id {id} is outside the embedding of {rows} rows: data and model must share a tokenizer"
                    )));
                }
            }
        }
        for row in 0..rows {
            offsets[row + 1] += offsets[row];
        }
        let mut next = offsets.clone();
        let mut order = vec![0; ids.len()];
        for (position, &id) in ids.iter().enumerate() {
            let place = &mut next[id as usize];
            order[*place as usize] = position as i32;
            *place += 1;
        }
        Ok(InvertedIndex { order, offsets })
    }
}

/// What one forward and backward pass reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// B, rows.
    pub sequences: usize,
    /// T, Ki and Ko.
    pub shape: WindowShape,
    /// `[B, T, Ki]`; 0 where a window is padded.
    pub inputs: Vec<i32>,
    /// `[B, T, Ko]`; [`IGNORE_INDEX`] where there is nothing to predict.
    pub targets: Vec<i32>,
    /// The inverted index of `inputs`.
    pub index: InvertedIndex,
    /// Targets that are not ignored.
    pub valid_targets: usize,
    /// Sum of the weights of those targets: the number the summed loss is divided by. Equal to `valid_targets` where all
    /// weights are 1.
    pub valid_weight: f64,
    /// The least the summed loss can be, in nats: sum over rows of n * H(p). Divided by `valid_weight`, the floor.
    pub bag_entropy: f64,
}

impl Batch {
    /// Reads windows of one shape. `rows` is the number of rows of the embedding table; `weights` holds the weight of each
    /// of the Ko targets, all equal if empty.
    ///
    /// # Errors
    /// No window, weights of another number than Ko, a window outside the file, ids outside the table.
    pub fn read(
        file: &TokenFile,
        windows: &[Window],
        shape: WindowShape,
        weights: &[f64],
        rows: usize,
    ) -> Result<Self> {
        let patch = shape.target_patch;
        if windows.is_empty() || !(weights.is_empty() || weights.len() == patch) {
            return Err(Error::Config(format!(
                "a batch needs at least one window and one weight for each of its {patch} targets; it got {} windows and \
                 {} weights",
                windows.len(),
                weights.len()
            )));
        }
        let mut inputs = Vec::with_capacity(windows.len() * shape.advance());
        let mut targets = Vec::with_capacity(windows.len() * shape.positions * patch);
        let mut tokens = Vec::with_capacity(shape.reads());
        for window in windows {
            tokens.clear();
            let len = window.len.min(shape.reads()) as u64;
            file.read(window.start..window.start + len, &mut tokens)?;
            let at = |index: usize| tokens.get(index).copied();
            inputs.extend((0..shape.advance()).map(|index| at(index).unwrap_or(0)));
            for position in 1..=shape.positions {
                let first = position * shape.input_patch;
                targets.extend((first..first + patch).map(|index| at(index).unwrap_or(IGNORE_INDEX)));
            }
        }
        let ones = vec![1.0; patch];
        let weights = if weights.is_empty() { &ones } else { weights };
        let (valid_targets, valid_weight, bag_entropy) = measure(&targets, weights);
        Ok(Batch {
            sequences: windows.len(),
            shape,
            index: InvertedIndex::new(&inputs, rows)?,
            inputs,
            targets,
            valid_targets,
            valid_weight,
            bag_entropy,
        })
    }

    /// Tokens this batch advances through the text: B*T*Ki.
    pub fn tokens(&self) -> usize {
        self.sequences * self.shape.advance()
    }

    /// Ids, targets and inverted index together: the integers that a device is given.
    pub fn integers(&self) -> usize {
        self.inputs.len() + self.targets.len() + self.index.order.len() + self.index.offsets.len()
    }

    /// Positions the model computes: B*T.
    pub fn positions(&self) -> usize {
        self.sequences * self.shape.positions
    }
}

/// Number of valid targets, sum of their weights, and sum over rows of n * H(p).
fn measure(targets: &[i32], weights: &[f64]) -> (usize, f64, f64) {
    let (mut valid, mut total_weight, mut total_entropy) = (0, 0.0, 0.0);
    let mut bag: Vec<(i32, f64)> = Vec::with_capacity(weights.len());
    for row in targets.chunks_exact(weights.len()) {
        bag.clear();
        for (&id, &weight) in row.iter().zip(weights) {
            if id == IGNORE_INDEX {
                continue;
            }
            valid += 1;
            match bag.iter_mut().find(|(seen, _)| *seen == id) {
                Some((_, sum)) => *sum += weight,
                None => bag.push((id, weight)),
            }
        }
        let row_weight: f64 = bag.iter().map(|(_, weight)| weight).sum();
        let entropy =
            bag.iter().filter(|&&(_, weight)| weight > 0.0).map(|(_, weight)| weight * (row_weight / weight).ln());
        total_weight += row_weight;
        total_entropy += entropy.sum::<f64>();
    }
    (valid, total_weight, total_entropy)
}

/// The batches of one stage, from a window on: the iterator to give to a [`super::Loader`].
#[derive(Clone, Debug)]
pub struct StageBatches {
    /// The training tokens.
    pub file: Arc<TokenFile>,
    /// The order of the data.
    pub sampler: Sampler,
    /// Which stage of the sampler.
    pub stage: usize,
    /// Index in the stage of the next window to read: 0, or where a resumed run stands.
    pub next: u64,
    /// Index after the last window to read.
    pub end: u64,
    /// B, rows of one batch; the last batch has fewer if they do not divide what is left.
    pub sequences: usize,
    /// T, Ki and Ko.
    pub shape: WindowShape,
    /// Weight of each of the Ko targets; empty if all are 1.
    pub weights: Vec<f64>,
    /// Rows of the embedding table.
    pub rows: usize,
}

impl Iterator for StageBatches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        let after = self.end.min(self.next + self.sequences as u64);
        if self.next >= after {
            return None;
        }
        let windows: Result<Vec<Window>> =
            (self.next..after).map(|index| self.sampler.window(self.stage, index)).collect();
        self.next = after;
        Some(windows.and_then(|windows| Batch::read(&self.file, &windows, self.shape, &self.weights, self.rows)))
    }
}
