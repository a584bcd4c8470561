//! The training loop. Per step: see [`Stepper::step`]. Around it: stages, evaluation at token level in every stage, metrics, checkpoints, and stopping on request.

use std::path::Path;
use std::time::Instant;

use patchgpt_tensor::Device;

use super::batches::{StepBatches, stage_shape};
use super::checkpoint::{Checkpoint, Checkpoints, State};
use super::choices::ChoicesFile;
use super::folder::RunFolder;
use super::metrics::{self, MetricsWriter, Record};
use super::observer::{Observer, Setup};
use super::outcome::Outcome;
use super::prepare;
use super::sample::sample;
use super::stages::{Plan, Stage, StageName};
use super::step::{self, Step, Stepper};
use crate::config::{Config, Documents, OptimizerAtSwitch};
use crate::data::{Batch, Dataset, EvaluationSet, Loader, Sampler};
use crate::evaluate::{Evaluation, evaluate};
use crate::gpt::Gpt;
use crate::optimizer::AdamW;
use crate::{Error, Result, hub};

/// Steps whose batches are made ahead of time.
const STEPS_AHEAD: usize = 2;

/// How a run begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Start<'a> {
    /// Continue the run in the folder instead of beginning one.
    pub resume: bool,
    /// Data that was made before with the same configuration, instead of making it in the folder.
    pub dataset: Option<&'a Dataset>,
}

/// Trains as `config` says in `folder`, from the beginning or, with [`Start::resume`], from the newest whole checkpoint, to the bit.
/// Writes `config.toml` before it reads data, then `metrics.jsonl` and `checkpoints/` as it goes, and `model/` at the end or where
/// it is stopped.
///
/// # Errors
/// A configuration that cannot be meant or contradicts the one recorded; a folder that holds another run; data, weights or
/// checkpoints that cannot be read; a loss that is not finite; a full disk. What was written before stays.
pub fn run(config: &Config, folder: &Path, start: Start<'_>, observer: &mut dyn Observer) -> Result<Outcome> {
    let plan = Plan::new(config)?;
    let folder = if start.resume {
        let folder = RunFolder::open(folder)?;
        config.check_same_run(&folder.recorded()?, &format!("`{}`", folder.config().display()))?;
        folder
    } else {
        RunFolder::create(folder, config)?
    };
    let _lock = folder.lock()?;
    let mut notes = Vec::new();
    let checkpoints = Checkpoints::new(folder.checkpoints());
    let checkpoint = if start.resume { newest(&checkpoints, config, &folder, &mut notes, observer)? } else { None };

    let made;
    let dataset = match (start.dataset, &checkpoint) {
        (Some(dataset), _) => dataset,
        (None, Some(checkpoint)) => {
            made = prepare::reopen_dataset(config, &folder.data(), &checkpoint.state.data, observer)?;
            &made
        }
        (None, None) => {
            made = prepare::make_dataset(config, &folder.data())?;
            &made
        }
    };
    if let Some(checkpoint) = &checkpoint {
        prepare::check_identity(dataset, &checkpoint.state.data)?;
        if config.device.searches() && !folder.gemm().exists() {
            observer.notice(&format!(
                "`{}` is not there, so the algorithms of the run's products are searched anew: its results may differ in their last bits from what \
                 they would have been.",
                folder.gemm().display()
            ));
        }
    }
    let mut trainer = Trainer::new(config, &plan, &folder, dataset, checkpoint.as_ref())?;
    drop(checkpoint);
    notes.insert(0, format!("{}, {}.", trainer.device, config.device.dtype));
    notes.push(format!("{}.", crate::flops::FORMULA));
    let trained = trainer.train(observer).and_then(|()| trainer.finish(observer));
    let (evaluation, sample) = trained.map_err(|error| trainer.explain(error))?;
    Ok(Outcome {
        config: config.clone(),
        steps: trainer.state.step,
        records: metrics::read(&folder.metrics())?,
        initial: trainer.state.initial.into(),
        evaluation,
        sample,
        training_tokens: dataset.training.token_count(),
        notes,
        plan,
    })
}

/// The checkpoint to continue from, which must be of this run; tells what was found.
fn newest(
    checkpoints: &Checkpoints,
    config: &Config,
    folder: &RunFolder,
    notes: &mut Vec<String>,
    observer: &mut dyn Observer,
) -> Result<Option<Checkpoint>> {
    let found = checkpoints.newest(|sentence| observer.notice(&format!("{sentence}.")))?;
    let Some(checkpoint) = found else {
        observer.notice(&format!(
            "The run in `{}` has no checkpoint yet, so there is nothing to continue from: it starts over.",
            folder.path().display()
        ));
        return Ok(None);
    };
    if checkpoint.state.config != prepare::config_hash(config)? {
        return Err(Error::Checkpoint(format!(
            "`{}` was written by a run with another configuration than the one in `{}`: remove it, or put it back where it belongs",
            checkpoint.path().display(),
            folder.config().display()
        )));
    }
    notes.push(format!("Continued after step {}.", checkpoint.state.step));
    Ok(Some(checkpoint))
}

/// A run at work.
struct Trainer<'a> {
    config: &'a Config,
    plan: &'a Plan,
    folder: &'a RunFolder,
    dataset: &'a Dataset,
    device: Device,
    choices: ChoicesFile,
    gpt: Gpt,
    optimizer: AdamW,
    windows: EvaluationSet,
    metrics: MetricsWriter,
    checkpoints: Checkpoints,
    state: State,
    /// The last evaluation and the steps made before it.
    evaluated: Option<(u64, Evaluation)>,
    /// Step of the newest checkpoint.
    saved: Option<u64>,
}

impl<'a> Trainer<'a> {
    fn new(
        config: &'a Config,
        plan: &'a Plan,
        folder: &'a RunFolder,
        dataset: &'a Dataset,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Self> {
        prepare::check_vocabulary(config, &dataset.tokenizer)?;
        let windows = EvaluationSet::new(
            dataset.validation.clone(),
            &dataset.tokenizer,
            config.train.seq_len,
            Some(config.train.evaluation_windows),
        )?;
        // Text that is too short is found here, before a model is made.
        sampler(config, plan, dataset)?;
        let (device, mut choices) = ChoicesFile::open_device(folder.gemm(), &config.device)?;
        let gpt = match checkpoint {
            None => prepare::initial_model(config, &device)?,
            Some(_) => Gpt::zeros(&config.model, prepare::dtype(&config.device), &device)?
                .with_recompute(config.train.recompute),
        };
        let mut optimizer = AdamW::new(gpt.parameters(), (&config.train).into())?;
        let state = match checkpoint {
            Some(checkpoint) => {
                checkpoint.restore(gpt.parameters(), &mut optimizer)?;
                checkpoint.state.clone()
            }
            None => State {
                step: 0,
                optimizer_steps: 0,
                seconds: 0.0,
                seed: config.train.seed,
                initial: finite(&gpt, &windows, config, 0)?.into(),
                config: prepare::config_hash(config)?,
                data: prepare::identity(dataset),
            },
        };
        choices.keep(&device)?;
        Ok(Trainer {
            metrics: MetricsWriter::open_at(&folder.metrics(), state.step)?,
            checkpoints: Checkpoints::new(folder.checkpoints()),
            saved: checkpoint.map(|checkpoint| checkpoint.state.step),
            evaluated: (state.step == 0).then(|| (0, state.initial.into())),
            config,
            plan,
            folder,
            dataset,
            device,
            choices,
            gpt,
            optimizer,
            windows,
            state,
        })
    }

    /// The steps that are left, or those until a stop is requested.
    fn train(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let device = self.device.to_string();
        observer.begin(&Setup {
            plan: self.plan,
            parameters: self.config.model.parameters(),
            vocabulary: self.dataset.tokenizer.vocabulary(),
            training_tokens: self.dataset.training.token_count(),
            validation_tokens: self.dataset.validation.token_count(),
            scored_tokens: self.windows.tokens(),
            device: &device,
            done: self.state.step,
        });
        if let Some((0, evaluation)) = self.evaluated {
            observer.evaluated(0, &evaluation);
        }
        let sampler = sampler(self.config, self.plan, self.dataset)?;
        let plan = self.plan;
        for (index, stage) in plan.stages.iter().enumerate() {
            if self.state.step >= stage.end() {
                continue;
            }
            if index > 0
                && self.state.step == stage.first_step
                && self.config.train.optimizer_at_switch == OptimizerAtSwitch::Reset
            {
                self.optimizer.reset()?;
            }
            let done = self.state.step - stage.first_step;
            observer.stage(index, stage, done);
            let rows = self.config.model.vocab_size;
            let file = self.dataset.training.clone();
            let batches = StepBatches::new(file, sampler.clone(), index, stage, done, rows);
            self.stage(stage, Loader::start(batches, STEPS_AHEAD)?, observer)?;
            if self.state.step < stage.end() {
                return self.checkpoint();
            }
        }
        self.checkpoint()
    }

    /// The steps of a stage, or those until a stop is requested.
    fn stage(&mut self, stage: &Stage, mut batches: Loader<Vec<Batch>>, observer: &mut dyn Observer) -> Result<()> {
        let target_weights = stage.regime.weights();
        // What its steps have in common goes with the stage.
        let mut stepper = Stepper::new(self.config.device.graphs());
        while self.state.step < stage.end() && !observer.stop_requested() {
            let begun = Instant::now();
            let Some(batch) = batches.next() else {
                return Err(Error::Data(format!("the data ended before step {}", self.state.step + 1)));
            };
            let made = self.step(stage, &mut stepper, &batch?, &target_weights)?;
            let seconds = begun.elapsed().as_secs_f64();
            self.state.step += 1;
            self.state.seconds += seconds;
            self.state.optimizer_steps = self.optimizer.steps();
            let step = self.state.step;
            let due = step.is_multiple_of(self.config.train.evaluate_every) || step == stage.end();
            if due {
                let evaluation = finite(&self.gpt, &self.windows, self.config, step)?;
                observer.evaluated(step, &evaluation);
                self.evaluated = Some((step, evaluation));
            }
            self.choices.keep(&self.device)?;
            let record = self.record(stage, &made, seconds);
            self.metrics.write(&record)?;
            observer.step(&record);
            if step.is_multiple_of(self.config.train.checkpoint_every) {
                self.checkpoint()?;
            }
        }
        Ok(())
    }

    /// One optimizer step.
    fn step(&mut self, stage: &Stage, stepper: &mut Stepper, passes: &[Batch], target_weights: &[f64]) -> Result<Made> {
        let (step, lr) = (self.state.step, self.plan.learning_rate(self.state.step));
        let Step { loss, grad_norm } =
            stepper.step(&self.gpt, &mut self.optimizer, passes, target_weights, lr, self.config.train.clip)?;
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Err(Error::Metrics(format!(
                "training diverged in step {}: the loss is {loss} and the norm of the gradient {grad_norm}, at a learning rate of \
                 {lr}; a smaller --lr, a longer --warmup or a smaller train.clip usually helps",
                step + 1
            )));
        }
        let floor: f64 = passes.iter().map(|batch| batch.bag_entropy).sum::<f64>() / step::valid_weight(passes);
        Ok(Made { loss, loss_above_floor: (stage.name == StageName::Patch).then_some(loss - floor), lr, grad_norm })
    }

    fn record(&self, stage: &Stage, made: &Made, seconds: f64) -> Record {
        let step = self.state.step;
        let totals = self.plan.totals(step);
        let evaluated = self.evaluated.filter(|&(at, _)| at == step);
        Record {
            step,
            stage: stage.name,
            tokens: totals.tokens,
            positions: totals.positions,
            loss: made.loss,
            loss_above_floor: made.loss_above_floor,
            val_loss: evaluated.map(|(_, evaluation)| evaluation.loss),
            lr: made.lr,
            grad_norm: made.grad_norm,
            // A clock may stand still over a step that takes no time.
            tokens_per_second: stage.tokens_per_step as f64 / seconds.max(1e-9),
            model_flops: totals.model_flops,
            seconds: self.state.seconds,
        }
    }

    /// Writes a checkpoint unless the newest one is of this step.
    fn checkpoint(&mut self) -> Result<()> {
        if self.saved == Some(self.state.step) {
            return Ok(());
        }
        self.metrics.sync()?;
        self.checkpoints.write(&self.state, self.gpt.parameters(), &self.optimizer)?;
        self.saved = Some(self.state.step);
        Ok(())
    }

    /// Writes the model; of a finished run also the last evaluation and a sample.
    fn finish(&mut self, observer: &mut dyn Observer) -> Result<(Option<Evaluation>, String)> {
        let model = self.folder.model();
        std::fs::create_dir_all(&model).map_err(Error::io("create the folder", &model))?;
        self.dataset.tokenizer.save(&model)?;
        hub::save(&self.gpt, &model)?;
        let step = self.state.step;
        if step < self.plan.steps() {
            return Ok((None, String::new()));
        }
        let evaluation = match self.evaluated {
            Some((at, evaluation)) if at == step => evaluation,
            _ => {
                let evaluation = finite(&self.gpt, &self.windows, self.config, step)?;
                observer.evaluated(step, &evaluation);
                evaluation
            }
        };
        Ok((Some(evaluation), sample(&self.gpt, &self.dataset.tokenizer, self.config.train.seed)?))
    }

    /// Adds to an error what is left of the run and how to go on.
    fn explain(&self, error: Error) -> Error {
        let folder = self.folder.path().display();
        let kept = match self.saved {
            Some(step) => format!(
                "The run in `{folder}` is whole up to its checkpoint of step {step}; --resume continues from there"
            ),
            None => format!("The run in `{folder}` has no checkpoint yet; --resume starts it over"),
        };
        Error::Checkpoint(format!("{}. {kept}", error.to_string().trim_end_matches('.')))
    }
}

/// What one step of the run found.
struct Made {
    loss: f64,
    loss_above_floor: Option<f64>,
    lr: f64,
    grad_norm: f64,
}

/// The order of the data.
fn sampler(config: &Config, plan: &Plan, dataset: &Dataset) -> Result<Sampler> {
    let shapes: Vec<_> = plan.stages.iter().map(stage_shape).collect();
    let file = &dataset.training;
    let documents = (config.data.documents == Documents::Respect).then(|| file.documents());
    Sampler::new(file.token_count(), documents, &shapes, config.train.seed)
}

/// Evaluates after `step` steps; a loss that is not finite is an error.
fn finite(gpt: &Gpt, windows: &EvaluationSet, config: &Config, step: u64) -> Result<Evaluation> {
    let sequences = config.train.micro_batch.unwrap_or(config.train.batch_size);
    let evaluation = evaluate(gpt, windows, sequences)?;
    if evaluation.loss.is_finite() {
        return Ok(evaluation);
    }
    Err(Error::Metrics(format!(
        "training diverged: the validation loss after step {step} is {}; a smaller --lr or a longer --warmup usually helps",
        evaluation.loss
    )))
}
