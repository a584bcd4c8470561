//! Reports: one self-contained HTML page for a run, one for a comparison, and the comparison's table for a terminal.
//!
//! A page needs nothing but itself: charts are inline SVG, styles stand in its head, no script runs, and light or
//! dark follows the reader's system. Everything that came from outside (configuration, sample, titles) is escaped.
//! Input is plain data; perplexity is exp(loss), tokens per second and ratios are derived here and nowhere else.

mod axis;
mod chart;
mod compare;
mod curve;
mod figure;
mod ink;
mod number;
mod page;
mod run;
mod scale;
mod table;

use std::path::Path;

use crate::atomic_file;
use crate::error::Result;
use crate::train::metrics::Record;
use crate::train::stages::{EqualBudget, Stage, StageName};

pub use table::compare_table;

/// Token-level loss on the fixed validation windows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean loss in nats per token.
    pub loss: f64,
    /// The same loss in bits per byte of text, which does not depend on the tokenizer.
    pub bits_per_byte: f64,
}

impl Evaluation {
    /// exp(loss): the perplexity per token.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// What one stage of a run read and cost; counts are of this stage alone.
#[derive(Clone, Debug, PartialEq)]
pub struct StageSummary {
    /// Patches or tokens.
    pub stage: StageName,
    /// Tokens a position reads, K.
    pub patch_size: usize,
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens read.
    pub tokens: u64,
    /// Positions trained on.
    pub positions: u64,
    /// Model FLOPs.
    pub model_flops: f64,
    /// Seconds of training.
    pub seconds: f64,
}

impl StageSummary {
    /// One summary for each of `stages` that has records, as differences of the cumulative counters. A run that was
    /// interrupted has fewer, the last of them with the steps it made.
    pub fn from_records(records: &[Record], stages: &[Stage]) -> Vec<Self> {
        let mut before = (0, 0, 0, 0.0, 0.0);
        let mut summaries = Vec::new();
        for stage in stages {
            // Steps of records count from 1, those of stages from 0.
            let read = records.partition_point(|record| record.step <= stage.end());
            let Some(last) = records[..read].last().filter(|last| last.step > before.0) else {
                continue;
            };
            summaries.push(Self {
                stage: stage.name,
                patch_size: stage.regime.input_patch,
                steps: last.step - before.0,
                tokens: last.tokens - before.1,
                positions: last.positions - before.2,
                model_flops: last.model_flops - before.3,
                seconds: last.seconds - before.4,
            });
            before = (last.step, last.tokens, last.positions, last.model_flops, last.seconds);
        }
        summaries
    }

    /// What the stage is called beside its curve: `patches of 4`, `tokens`.
    fn label(&self) -> String {
        match self.stage {
            StageName::Patch => format!("patches of {}", self.patch_size),
            StageName::Token => "tokens".to_owned(),
        }
    }

    /// Tokens read per second, or `None` where no time was measured.
    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.tokens as f64 / self.seconds)
    }
}

/// How many times faster the patch stage read tokens than the token stage, when a run had both.
pub fn patch_speed_up(stages: &[StageSummary]) -> Option<f64> {
    let rate = |kind| {
        let of = |stage: &&StageSummary| stage.stage == kind;
        let seconds: f64 = stages.iter().filter(of).map(|stage| stage.seconds).sum();
        let tokens: u64 = stages.iter().filter(of).map(|stage| stage.tokens).sum();
        (seconds > 0.0 && tokens > 0).then(|| tokens as f64 / seconds)
    };
    Some(rate(StageName::Patch)? / rate(StageName::Token)?)
}

/// Everything `report.html` of a training run shows.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// Heading of the page, such as the name of the run's folder.
    pub title: String,
    /// The resolved configuration, as it stands in `config.toml`.
    pub config_toml: String,
    /// Trainable parameters of the model.
    pub parameters: u64,
    /// The whole of `metrics.jsonl`.
    pub records: Vec<Record>,
    /// Evaluation before the first step, where one was made.
    pub initial: Option<Evaluation>,
    /// Evaluation after the last step; `None` for a run that has not finished.
    pub evaluation: Option<Evaluation>,
    /// The stages that were planned; what a stage read and cost comes from the records.
    pub stages: Vec<Stage>,
    /// Text the model wrote at the end, prompt included.
    pub sample: String,
    /// Sentences to show beside the results: the device, the formula of model FLOPs, what was resumed.
    pub notes: Vec<String>,
}

impl RunReport {
    /// The page.
    ///
    /// # Errors
    /// A chart that cannot be drawn.
    pub fn html(&self) -> Result<String> {
        run::html(self)
    }

    /// Writes the page to `path` at one instant: whoever opens it meets the old page or the whole new one.
    ///
    /// # Errors
    /// A chart that cannot be drawn, a folder that cannot be written, or a full disk; an old page is then kept.
    pub fn write(&self, path: &Path) -> Result<()> {
        atomic_file::replace(path, self.html()?.as_bytes())
    }
}

/// One run of an arm.
#[derive(Clone, Debug)]
pub struct SeedRun {
    /// Seed of the initial weights and of the data order.
    pub seed: u64,
    /// The whole of its metrics.
    pub records: Vec<Record>,
    /// Evaluation before the first step, where one was made.
    pub initial: Option<Evaluation>,
    /// Evaluation after the last step.
    pub evaluation: Evaluation,
    /// Tokens read.
    pub tokens: u64,
    /// How often the training text was read.
    pub epochs: f64,
    /// Model FLOPs spent.
    pub model_flops: f64,
    /// Seconds of training.
    pub seconds: f64,
}

/// One regime of a comparison, over all its seeds.
#[derive(Clone, Debug)]
pub struct Arm {
    /// What the regime is called: `token-level only`, `patch-then-token, K = 4`.
    pub name: String,
    /// Compute per token by formula against all-token training: lambda/K + 1 - lambda.
    pub cost_by_formula: f64,
    /// One run a seed, in the same order of seeds in every arm.
    pub seeds: Vec<SeedRun>,
}

/// Everything the report of a comparison shows. The first arm is the baseline that costs are relative to.
#[derive(Clone, Debug)]
pub struct CompareReport {
    /// Heading of the page.
    pub title: String,
    /// What was held equal.
    pub budget: EqualBudget,
    /// The configuration both arms share, as TOML.
    pub config_toml: String,
    /// Trainable parameters of the model.
    pub parameters: u64,
    /// The arms, baseline first.
    pub arms: Vec<Arm>,
    /// Sentences to show beside the results.
    pub notes: Vec<String>,
}

impl CompareReport {
    /// The page.
    ///
    /// # Errors
    /// A chart that cannot be drawn.
    pub fn html(&self) -> Result<String> {
        compare::html(self)
    }

    /// Writes the page to `path` at one instant, as [`RunReport::write`] does.
    ///
    /// # Errors
    /// A chart that cannot be drawn, a folder that cannot be written, or a full disk; an old page is then kept.
    pub fn write(&self, path: &Path) -> Result<()> {
        atomic_file::replace(path, self.html()?.as_bytes())
    }
}

#[cfg(test)]
mod synthetic;
#[cfg(test)]
mod tests;
