//! What a training run tells while it runs, and how it is asked to stop. The loop draws nothing and prints nothing itself.

use super::metrics::Record;
use super::stages::{Plan, Stage};
use crate::evaluate::Evaluation;

/// What is known when everything is read and the first step is about to begin.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// The stages.
    pub plan: &'a Plan,
    /// Trainable parameters.
    pub parameters: usize,
    /// Ids of the tokenizer.
    pub vocabulary: usize,
    /// Tokens to train on.
    pub training_tokens: u64,
    /// Tokens of the validation text.
    pub validation_tokens: u64,
    /// Tokens that an evaluation scores.
    pub scored_tokens: u64,
    /// The device and how it computes.
    pub device: &'a str,
    /// Steps that earlier sessions made.
    pub done: u64,
}

/// Follows a run. Every method has a default that does nothing; `()` is an observer that does not look.
pub trait Observer {
    /// Everything is read.
    fn begin(&mut self, _setup: &Setup<'_>) {}
    /// A stage begins or, with `done` steps of it made before, continues.
    fn stage(&mut self, _index: usize, _stage: &Stage, _done: u64) {}
    /// A step was made and its record written.
    fn step(&mut self, _record: &Record) {}
    /// The model was evaluated after `step` steps.
    fn evaluated(&mut self, _step: u64, _evaluation: &Evaluation) {}
    /// Something a user should know that is no error: a checkpoint that was passed over, data made again.
    fn notice(&mut self, _sentence: &str) {}
    /// Whether to stop after the current step, with a checkpoint.
    fn stop_requested(&self) -> bool {
        false
    }
}

impl Observer for () {}
