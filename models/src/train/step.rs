//! One optimizer step, as every caller makes it: a training run and a measurement of one do the same work.
//!
//! Gradients to zero; for each pass forward and backward with the gradient of
//! loss = sum over valid targets of weight * -log p(target) / M, M the weight of all valid targets of the step; clipping by the
//! global norm; AdamW. On a device that records work the first step of a kind runs as it is, the second is recorded as a graph, and from then on
//! a step is: write the step record (`record.rs`), replay the graph, read loss and norm when it has ended.

use std::time::{Duration, Instant};

use patchgpt_tensor::{Error as TensorError, Graph, Tensor};

use super::record::Record;
use crate::data::Batch;
use crate::gpt::Gpt;
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

/// Makes optimizer steps, and keeps what steps of one kind have in common: the step record and, on a device that records work, the graph.
///
/// A kind is a model with its optimizer, the sizes of the passes, and the clip. Steps of another kind begin anew, with a step that is not replayed; so one
/// stepper serves one stage of a run. Results are the same to the bit whether steps are replayed or not.
pub struct Stepper {
    graphs: bool,
    prepared: Option<Prepared>,
    host_time: Duration,
}

struct Prepared {
    // The graph goes before the record that it reads.
    mode: Mode,
    record: Record,
}

/// How the next step is made.
enum Mode {
    /// For the first time: the device tells whether it can be recorded.
    First,
    /// As it is, always.
    Eager,
    /// Recorded in so many bytes, then replayed.
    Capture(usize),
    /// Replayed.
    Replay(Graph),
}

impl Stepper {
    /// A stepper that, if `graphs`, records steps where the device can.
    pub fn new(graphs: bool) -> Stepper {
        Stepper { graphs, prepared: None, host_time: Duration::ZERO }
    }

    /// One optimizer step over `passes`. `target_weights` are those of the Ko targets of a position; `clip` is the largest global
    /// norm of the gradient, 0 for no limit.
    ///
    /// # Errors
    /// Batches that do not fit the model, a learning rate that is not finite, a step that cannot be recorded, a failure of the device; of one
    /// that runs out of memory, with what holds it.
    pub fn step(
        &mut self,
        gpt: &Gpt,
        optimizer: &mut AdamW,
        passes: &[Batch],
        target_weights: &[f64],
        learning_rate: f64,
        clip: f64,
    ) -> Result<Step> {
        let begun = Instant::now();
        let mut make = || {
            AdamW::check(learning_rate)?;
            let fits = |p: &Prepared| p.record.fits(gpt, optimizer, passes, target_weights, clip);
            if !self.prepared.as_ref().is_some_and(fits) {
                // What the last kind held goes first.
                self.prepared = None;
            }
            let prepared = match &mut self.prepared {
                Some(prepared) => prepared,
                none => none.insert(Prepared {
                    mode: if self.graphs { Mode::First } else { Mode::Eager },
                    record: Record::new(gpt, optimizer, passes, target_weights, clip)?,
                }),
            };
            prepared.record.write(gpt, passes, target_weights, learning_rate, optimizer.steps() + 1)?;
            prepared.make(gpt, optimizer, clip)?;
            optimizer.advance();
            self.host_time = begun.elapsed();
            let (loss, grad_norm) = prepared.record.read()?;
            Ok(Step { loss, grad_norm })
        };
        make().map_err(|error| explained(error, gpt, optimizer))
    }

    /// How long the last step kept the host, until all of its work had been given to the device.
    pub fn host_time(&self) -> Duration {
        self.host_time
    }

    /// Kernels, copies and fills of a step; `None` as long as none has been recorded.
    pub fn operations(&self) -> Option<usize> {
        match &self.prepared.as_ref()?.mode {
            Mode::Replay(graph) => Some(graph.operations()),
            _ => None,
        }
    }
}

impl Prepared {
    /// Gives the work of a step to the device.
    fn make(&mut self, gpt: &Gpt, optimizer: &AdamW, clip: f64) -> Result<()> {
        let record = &self.record;
        let work = || work(gpt, optimizer, record, clip);
        match self.mode {
            Mode::Eager => return work(),
            Mode::First => {
                self.mode = gpt.device().rehearse(work)?.map_or(Mode::Eager, Mode::Capture);
                return Ok(());
            }
            Mode::Capture(memory) => {
                let graph = gpt.device().capture(memory, work).map_err(not_recorded)?;
                self.mode = Mode::Replay(graph);
            }
            Mode::Replay(_) => {}
        }
        if let Mode::Replay(graph) = &self.mode {
            graph.replay()?;
            gpt.parameters().mark_written();
            optimizer.mark_written();
            self.record.mark_written();
        }
        Ok(())
    }
}

/// The work of a step, all that it reads and all that is read of it being in the record: nothing here may depend on a number that changes between steps.
fn work(gpt: &Gpt, optimizer: &AdamW, record: &Record, clip: f64) -> Result<()> {
    let parameters = gpt.parameters();
    parameters.zero_gradients()?;
    for (pass, found) in record.passes.iter().zip(&record.losses) {
        let loss = gpt.loss_of(&pass.inputs, &pass.targets, &record.target_weights, &record.scale)?;
        loss.backward()?;
        found.copy_(loss.tensor())?;
    }
    let clip = Some(clip).filter(|&clip| clip > 0.0);
    optimizer.update(parameters, &record.learning_rate, &record.step, clip, &record.norm)
}

/// An error of a step that was being recorded, with the way around.
fn not_recorded(error: Error) -> Error {
    match error {
        Error::Tensor(TensorError::OutOfMemory { .. })
        | Error::Autograd(patchgpt_autograd::Error::Tensor(TensorError::OutOfMemory { .. })) => error,
        other => Error::Graph(other.to_string()),
    }
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
