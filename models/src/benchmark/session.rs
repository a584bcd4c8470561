//! Training steps to be timed one by one: a model with its optimizer, and for each regime batches that never repeat.

use std::sync::Arc;
use std::time::Instant;

use patchgpt_tensor::Device;
use tempfile::TempDir;

use crate::config::Config;
use crate::data::{Batch, Loader, Sampler, SplitMix64, TokenFile, TokenFileWriter};
use crate::gpt::Gpt;
use crate::optimizer::AdamW;
use crate::train::stages::{Stage, StageName};
use crate::train::{self, Step, StepBatches, Stepper, stage_shape};
use crate::{Error, Result};

/// Steps whose batches are made ahead of time, as in a training run.
const STEPS_AHEAD: usize = 2;

/// Ids of the token file that batches are read from, or those of [`LEAST_STEPS`] steps where these are more.
const LEAST_TOKENS: usize = 1 << 20;
const LEAST_STEPS: usize = 4;

/// Most steps that a feed gives.
pub const MOST_STEPS: u64 = 100_000;

/// Batches of one regime, on the way that those of a training run take: a token file, windows in shuffled order, a thread
/// that makes them ahead of time. The ids are random, all of the vocabulary alike, so that no text is needed; how long a step takes does not depend on them,
/// but for the rows of the embedding that get a gradient: with text they are fewer.
pub struct Feed {
    stage: Stage,
    target_weights: Vec<f64>,
    batches: Loader<Vec<Batch>>,
    /// What the steps of this regime have in common.
    stepper: Stepper,
    /// The token file's folder: it goes when the feed does.
    _folder: TempDir,
}

impl Feed {
    /// Batches of the patch or the token stage that `config` describes.
    ///
    /// # Errors
    /// Settings that contradict each other, a folder for temporary files that cannot be written.
    pub fn new(config: &Config, name: StageName) -> Result<Feed> {
        let stage = Stage::alone(config, name, MOST_STEPS)?;
        let folder = tempfile::tempdir().map_err(Error::io("create a folder in", std::env::temp_dir()))?;
        let file = Arc::new(random_tokens(config, &stage, &folder)?);
        let sampler = Sampler::new(file.token_count(), None, &[stage_shape(&stage)], config.train.seed)?;
        let batches = StepBatches::new(file, sampler, 0, &stage, 0, config.model.vocab_size);
        let target_weights = stage.regime.weights();
        let (batches, stepper) = (Loader::start(batches, STEPS_AHEAD)?, Stepper::new(config.device.graphs()));
        Ok(Feed { stage, target_weights, batches, stepper, _folder: folder })
    }

    /// Regime and sizes of the steps.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Kernels, copies and fills of a step, where the device has recorded one.
    pub fn operations(&self) -> Option<usize> {
        self.stepper.operations()
    }
}

fn random_tokens(config: &Config, stage: &Stage, folder: &TempDir) -> Result<TokenFile> {
    let vocabulary = config.model.vocab_size;
    let window = stage.regime.window_tokens(config.train.seq_len);
    let count = LEAST_TOKENS.max(LEAST_STEPS * stage.sequences * window);
    let mut random = SplitMix64::from_key(&[config.train.seed]);
    let ids: Vec<i32> = (0..count).map(|_| random.below(vocabulary as u64) as i32).collect();
    let mut writer = TokenFileWriter::create(&folder.path().join("random.tokens"), vocabulary, [0; 32])?;
    writer.push_document(&ids)?;
    writer.finish()
}

/// A step with its times.
#[derive(Clone, Copy, Debug)]
pub struct TimedStep {
    /// Loss and norm of the gradient.
    pub step: Step,
    /// The whole step in seconds, from asking for its batch to having its loss.
    pub seconds: f64,
    /// Of these, how long the batch was waited for.
    pub waited: f64,
    /// Of these, how long the host was busy until the device had been given all of the step's work.
    pub host: f64,
}

/// A model in training.
pub struct Session {
    gpt: Gpt,
    optimizer: AdamW,
    learning_rate: f64,
    clip: f64,
}

impl Session {
    /// The model and the optimizer of `config` on `device`, at a constant learning rate.
    ///
    /// # Errors
    /// Too little memory, a dtype that the device does not compute.
    pub fn new(config: &Config, device: &Device) -> Result<Session> {
        let gpt = train::initial_model(config, device)?;
        let optimizer = AdamW::new(gpt.parameters(), (&config.train).into())?;
        Ok(Session { gpt, optimizer, learning_rate: config.train.lr, clip: config.train.clip })
    }

    /// One optimizer step on the next batch of `feed`.
    ///
    /// # Errors
    /// A feed that is exhausted, a loss that is not finite, a failure of the device.
    pub fn step(&mut self, feed: &mut Feed) -> Result<TimedStep> {
        let begun = Instant::now();
        let Some(passes) = feed.batches.next() else {
            return Err(Error::Data(format!(
                "a measurement has at most {MOST_STEPS} steps, and all of them were made"
            )));
        };
        let passes = passes?;
        let waited = begun.elapsed().as_secs_f64();
        let (rate, clip) = (self.learning_rate, self.clip);
        let Feed { stepper, target_weights, .. } = feed;
        let step = stepper.step(&self.gpt, &mut self.optimizer, &passes, target_weights, rate, clip)?;
        let host = stepper.host_time().as_secs_f64();
        let seconds = begun.elapsed().as_secs_f64();
        if !(step.loss.is_finite() && step.grad_norm.is_finite()) {
            return Err(Error::Metrics(format!(
                "training diverged: the loss is {} and the norm of the gradient {}; a smaller train.lr usually helps",
                step.loss, step.grad_norm
            )));
        }
        Ok(TimedStep { step, seconds, waited, host })
    }
}
