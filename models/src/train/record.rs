//! The step record: everything of an optimizer step that changes from one to the next, on the device at addresses that stay. A recorded step reads it at
//! each replay. It takes four copies from the host, however many passes there are, and gives its results back in one.

use patchgpt_tensor::{DType, Device, ScatterIndex, Tensor};

use crate::data::{Batch, WindowShape};
use crate::gpt::{Gpt, Inputs, mean_factor};
use crate::optimizer::AdamW;
use crate::{Error, Result};

/// Numbers in front of the target weights: learning rate, 1 / M.
const NUMBERS: usize = 2;

/// What is fixed about the steps that share a record, and a recording: another model, other sizes or another clip make new ones.
struct Kind {
    /// Storage that is the model's and the optimizer's own.
    values: Tensor,
    moment: Tensor,
    passes: Vec<PassKind>,
    target_weights: usize,
    clip: f64,
}

/// Sequences and window of a pass, and the lengths of its ids, targets, order and offsets.
type PassKind = (usize, WindowShape, [usize; 4]);

/// What a forward and backward pass reads.
pub(super) struct Pass {
    pub(super) inputs: Inputs,
    /// i32 [B, T, Ko].
    pub(super) targets: Tensor,
}

/// The record of the steps of one kind.
pub(super) struct Record {
    kind: Kind,
    pub(super) passes: Vec<Pass>,
    /// Learning rate and 1 / M, 0-d, and the target weights [Ko]: views of `numbers`.
    pub(super) learning_rate: Tensor,
    pub(super) scale: Tensor,
    pub(super) target_weights: Tensor,
    /// Number of the update, counted from 1, 0-d i32: a view of `integers`.
    pub(super) step: Tensor,
    /// The loss of each pass, then the norm of the gradient, 0-d: views of `found`.
    pub(super) losses: Vec<Tensor>,
    pub(super) norm: Tensor,
    ids: Tensor,
    targets: Tensor,
    /// Of each pass the order and the offsets of its inverted index, then the number of the update.
    integers: Tensor,
    numbers: Tensor,
    found: Tensor,
    /// Where the host gathers what one copy takes.
    host: Vec<i32>,
}

impl Record {
    /// A record for steps over batches like `passes`, not yet written.
    pub(super) fn new(
        gpt: &Gpt,
        optimizer: &AdamW,
        passes: &[Batch],
        target_weights: &[f64],
        clip: f64,
    ) -> Result<Record> {
        let device = gpt.device();
        let flat = |count: usize, dtype: DType, device: &Device| Tensor::zeros(&[count], dtype, device);
        let sum = |len: fn(&Batch) -> usize| passes.iter().map(len).sum::<usize>();
        let ids = flat(sum(|batch| batch.inputs.len()), DType::I32, device)?;
        let targets = flat(sum(|batch| batch.targets.len()), DType::I32, device)?;
        let indices = sum(|batch| batch.index.order.len() + batch.index.offsets.len());
        let integers = flat(indices + 1, DType::I32, device)?;
        let accumulator = gpt.dtype().accumulator();
        let numbers = flat(NUMBERS + target_weights.len(), accumulator, device)?;
        let found = flat(passes.len() + 1, accumulator, device)?;

        let (mut ids_left, mut targets_left, mut integers_left) =
            (Parts::of(&ids), Parts::of(&targets), Parts::of(&integers));
        let mut parts = Vec::with_capacity(passes.len());
        for batch in passes {
            let rows = [batch.sequences, batch.shape.positions];
            let index = ScatterIndex::over(
                integers_left.next(&[batch.index.order.len()])?,
                integers_left.next(&[batch.index.offsets.len()])?,
            )?;
            let ids = ids_left.next(&[rows[0], rows[1], batch.shape.input_patch])?;
            let targets = targets_left.next(&[rows[0], rows[1], batch.shape.target_patch])?;
            parts.push(Pass { inputs: Inputs::over(ids, index), targets });
        }
        let mut numbers_left = Parts::of(&numbers);
        let mut found_left = Parts::of(&found);
        Ok(Record {
            kind: Kind {
                values: gpt.parameters().values().clone(),
                moment: optimizer.first_moment().clone(),
                passes: passes.iter().map(kind).collect(),
                target_weights: target_weights.len(),
                clip,
            },
            passes: parts,
            learning_rate: numbers_left.next(&[])?,
            scale: numbers_left.next(&[])?,
            target_weights: numbers_left.next(&[target_weights.len()])?,
            step: integers_left.next(&[])?,
            losses: passes.iter().map(|_| found_left.next(&[])).collect::<Result<_>>()?,
            norm: found_left.next(&[])?,
            ids,
            targets,
            integers,
            numbers,
            found,
            host: Vec::new(),
        })
    }

    /// Whether a step over `passes` is of the record's kind.
    pub(super) fn fits(
        &self,
        gpt: &Gpt,
        optimizer: &AdamW,
        passes: &[Batch],
        target_weights: &[f64],
        clip: f64,
    ) -> bool {
        let same = |a: &Tensor, b: &Tensor| std::ptr::eq(&**a.buffer(), &**b.buffer());
        let Kind { values, moment, passes: known, target_weights: weights, clip: limit } = &self.kind;
        same(values, gpt.parameters().values())
            && same(moment, optimizer.first_moment())
            && known.iter().copied().eq(passes.iter().map(kind))
            && *weights == target_weights.len()
            && *limit == clip
    }

    /// Writes what a step reads. Indices are checked here, since a replay checks nothing.
    ///
    /// # Errors
    /// Ids or targets outside the vocabulary, an index that is none, targets of which none is scored; a failure of the device.
    pub(super) fn write(
        &mut self,
        gpt: &Gpt,
        passes: &[Batch],
        target_weights: &[f64],
        learning_rate: f64,
        step: u64,
    ) -> Result<()> {
        let scale = mean_factor(passes.iter().map(|batch| batch.valid_weight).sum())?;
        let step = i32::try_from(step)
            .map_err(|_| Error::Data(format!("at most 2^31 - 1 steps can be counted, not {step}")))?;
        for batch in passes {
            ScatterIndex::check(&batch.index.order, &batch.index.offsets)?;
        }
        let vocabulary = gpt.config().vocab_size;
        let host = &mut self.host;
        let mut gather = |to: &Tensor, parts: &mut dyn Iterator<Item = &[i32]>| {
            host.clear();
            parts.for_each(|part| host.extend_from_slice(part));
            to.write_from(host)
        };
        gather(&self.ids, &mut passes.iter().map(|batch| &batch.inputs[..]))?;
        self.ids.check_indices("patch_embedding", vocabulary, false)?;
        gather(&self.targets, &mut passes.iter().map(|batch| &batch.targets[..]))?;
        self.targets.check_indices("cross_entropy", vocabulary, true)?;
        let indices = passes.iter().flat_map(|batch| [&batch.index.order[..], &batch.index.offsets[..]]);
        gather(&self.integers, &mut indices.chain([&[step][..]]))?;
        let numbers = [learning_rate, scale].into_iter().chain(target_weights.iter().copied());
        match self.numbers.dtype() {
            DType::F64 => self.numbers.write_from(&numbers.collect::<Vec<f64>>())?,
            _ => self.numbers.write_from(&numbers.map(|number| number as f32).collect::<Vec<f32>>())?,
        }
        Ok(())
    }

    /// Waits for the step; the sum of its losses and the norm of its gradient.
    pub(super) fn read(&self) -> Result<(f64, f64)> {
        let found = match self.found.dtype() {
            DType::F64 => self.found.to_vec::<f64>()?,
            _ => self.found.to_vec::<f32>()?.into_iter().map(f64::from).collect(),
        };
        let [losses @ .., norm] = &found[..] else {
            return Err(Error::Metrics("a step has given no results back".into()));
        };
        Ok((losses.iter().sum(), *norm))
    }

    /// Tells that a replay has written the results.
    pub(super) fn mark_written(&self) {
        self.found.mark_written();
    }
}

fn kind(batch: &Batch) -> PassKind {
    let lengths = [batch.inputs.len(), batch.targets.len(), batch.index.order.len(), batch.index.offsets.len()];
    (batch.sequences, batch.shape, lengths)
}

/// A flat tensor handed out part by part.
struct Parts<'a> {
    whole: &'a Tensor,
    start: usize,
}

impl<'a> Parts<'a> {
    fn of(whole: &'a Tensor) -> Self {
        Parts { whole, start: 0 }
    }

    /// The next elements, as many as `shape` has.
    fn next(&mut self, shape: &[usize]) -> Result<Tensor> {
        let len = shape.iter().product();
        let part = self.whole.narrow(0, self.start, len)?.view(shape)?;
        self.start += len;
        Ok(part)
    }
}
