//! A run cut into stages: from budget and patch share to the steps of each, with what a step reads and costs.
//! Let a_j be the tokens of a step of stage j. Shares of tokens and of steps turn into each other by
//! r_j = (lambda_j / a_j) / sum_i (lambda_i / a_i); with constant positions a = K*B*T in patches and B*T in tokens, so
//! r = (lambda/K) / (lambda/K + 1 - lambda), and with constant tokens r = lambda. Cost against all-token training on the
//! same data: sum_j lambda_j / K_j, for two stages lambda/K + 1 - lambda (arXiv 2407.12665, section 3).

use std::fmt::Write;

use crate::config::{Config, TrainConfig};
use crate::flops;
use crate::regime::Regime;
use crate::schedule::Schedule;
use crate::{Error, Result};

crate::config::choice::choice! {
    /// Level of a stage.
    pub enum StageName: "stage" {
        /// Patches of several tokens, in, out or both.
        Patch = "patch",
        /// Next-token training.
        Token = "token",
    }
}

/// A run of steps under one regime.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Level, as it stands in the metrics.
    pub name: StageName,
    /// How tokens become positions.
    pub regime: Regime,
    /// First step, counted over the whole run.
    pub first_step: u64,
    /// Number of steps.
    pub steps: u64,
    /// Sequences per step.
    pub sequences: usize,
    /// Sequences per forward and backward pass; the last pass of a step may have fewer.
    pub micro_batch: usize,
    /// Positions per sequence.
    pub positions: usize,
    /// Tokens that a step reads: sequences * positions * Ki.
    pub tokens_per_step: u64,
    /// Positions of a step: sequences * positions.
    pub positions_per_step: u64,
    /// Model FLOPs of a step, forward and backward.
    pub model_flops_per_step: f64,
}

impl Stage {
    /// The step after the last.
    pub fn end(&self) -> u64 {
        self.first_step + self.steps
    }

    /// Tokens that the stage reads.
    pub fn tokens(&self) -> u64 {
        self.steps * self.tokens_per_step
    }

    /// Model FLOPs of the stage.
    pub fn model_flops(&self) -> f64 {
        self.steps as f64 * self.model_flops_per_step
    }

    /// A stage by itself, of `steps` steps: patches of the first of the configured sizes, or tokens.
    ///
    /// # Errors
    /// Patches that do not divide the batch or the context.
    #[cfg(feature = "program")]
    pub fn alone(config: &Config, name: StageName, steps: u64) -> Result<Stage> {
        let regime = match (name, config.train.stage_patch_sizes().first()) {
            (StageName::Patch, Some(&k)) => config.train.patch_regime(k),
            _ => Regime::token(),
        };
        regime.validate(config.train.seq_len, config.train.batch_size)?;
        Ok(Stage { steps, ..Stage::new(config, name, regime) })
    }

    fn new(config: &Config, name: StageName, regime: Regime) -> Stage {
        let train = &config.train;
        let sequences = regime.sequences(train.batch_size);
        let positions = regime.positions(train.seq_len);
        let positions_per_step = (sequences * positions) as u64;
        Stage {
            name,
            regime,
            first_step: 0,
            steps: 0,
            sequences,
            micro_batch: train.micro_batch.unwrap_or(sequences).min(sequences),
            positions,
            tokens_per_step: (sequences * regime.advance(train.seq_len)) as u64,
            positions_per_step,
            model_flops_per_step: positions_per_step as f64 * flops::training_per_position(&config.model, positions),
        }
    }
}

/// Totals after some number of steps, as they stand in the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Tokens read.
    pub tokens: u64,
    /// Positions trained on.
    pub positions: u64,
    /// Model FLOPs, evaluation not counted.
    pub model_flops: f64,
}

/// What the two arms of a comparison have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EqualBudget {
    /// Model FLOPs.
    Compute,
    /// Tokens read.
    Tokens,
}

/// The stages of a run and the learning rate of every step.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The stages in order; each has at least one step.
    pub stages: Vec<Stage>,
    schedule: Schedule,
    model_parameters: usize,
}

impl Plan {
    /// Cuts the run that `config` asks for into stages. Stages whose share rounds to no step are left out.
    ///
    /// # Errors
    /// An invalid configuration, a budget smaller than one step, or a warm-up longer than its stage.
    pub fn new(config: &Config) -> Result<Plan> {
        config.validate()?;
        let mut stages = candidates(config);
        let shares = shares(&config.train, &stages);
        let steps = stage_steps(&config.train, &stages, &shares)?;
        check_total(&stages, &steps)?;
        let mut first_step = 0;
        for (stage, steps) in stages.iter_mut().zip(steps) {
            (stage.first_step, stage.steps) = (first_step, steps);
            first_step += steps;
        }
        stages.retain(|stage| stage.steps > 0);
        let lengths: Vec<u64> = stages.iter().map(|stage| stage.steps).collect();
        let schedule = Schedule::new(config.train.rates(), &lengths)?;
        Ok(Plan { stages, schedule, model_parameters: config.model.parameters() })
    }

    /// Steps of all stages.
    pub fn steps(&self) -> u64 {
        self.stages.iter().map(|stage| stage.steps).sum()
    }

    /// Tokens read in all stages.
    pub fn tokens(&self) -> u64 {
        self.totals(self.steps()).tokens
    }

    /// Model FLOPs of all stages, evaluation not counted.
    pub fn model_flops(&self) -> f64 {
        self.totals(self.steps()).model_flops
    }

    /// Index of the stage that `step` belongs to; `None` past the end.
    pub fn stage_at(&self, step: u64) -> Option<usize> {
        self.stages.iter().position(|stage| step < stage.end())
    }

    /// Learning rate of `step`, counted from 0 over the whole run.
    pub fn learning_rate(&self, step: u64) -> f64 {
        self.schedule.learning_rate(step)
    }

    /// What the first `steps` steps read and cost.
    pub fn totals(&self, steps: u64) -> Totals {
        let mut totals = Totals::default();
        for stage in &self.stages {
            let done = steps.saturating_sub(stage.first_step).min(stage.steps);
            totals.tokens += done * stage.tokens_per_step;
            totals.positions += done * stage.positions_per_step;
            totals.model_flops += done as f64 * stage.model_flops_per_step;
        }
        totals
    }

    /// lambda as it came out: share of the tokens that is read in patches.
    pub fn patch_fraction(&self) -> f64 {
        let patches = self.stages.iter().filter(|stage| stage.name == StageName::Patch);
        patches.map(Stage::tokens).sum::<u64>() as f64 / self.tokens() as f64
    }

    /// Cost against all-token training on as many tokens by the formula: the sum of lambda_j / K_j, in two stages
    /// lambda/K + 1 - lambda. K is that of the input: what a step costs is the number of positions.
    pub fn cost_by_formula(&self) -> f64 {
        let total = self.tokens() as f64;
        self.stages.iter().map(|stage| stage.tokens() as f64 / total / stage.regime.input_patch as f64).sum()
    }

    /// The resolved numbers as a few lines for a terminal.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (index, stage) in self.stages.iter().enumerate() {
            let Regime { input_patch, target_patch, .. } = stage.regime;
            let patch = match (input_patch, target_patch) {
                (1, 1) => "tokens".to_string(),
                (k, 1) => format!("input patches of {k}, token targets"),
                (1, k) => format!("token input, targets of {k}"),
                (k, _) => format!("patches of {k}"),
            };
            let passes = stage.sequences.div_ceil(stage.micro_batch);
            let passes = if passes > 1 { format!(" in {passes} passes") } else { String::new() };
            let warmup = self.schedule.warmup_from(stage.first_step);
            let warmup = warmup.map_or(String::new(), |steps| format!("; warm-up over {steps} steps"));
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "stage {}: {patch}; {} steps of {} x {} positions{passes} = {} tokens a step; {} tokens, {:.3e} model \
                 FLOPs{warmup}",
                index + 1,
                stage.steps,
                stage.sequences,
                stage.positions,
                stage.tokens_per_step,
                stage.tokens(),
                stage.model_flops(),
            );
        }
        let steps = self.steps();
        let patch_steps: u64 =
            self.stages.iter().filter(|stage| stage.name == StageName::Patch).map(|stage| stage.steps).sum();
        let _ = writeln!(
            text,
            "in all: {steps} steps, {} tokens ({:.1} per parameter), {:.3e} model FLOPs; in patches lambda = {:.4} of the \
             tokens, r = {:.4} of the steps; cost {:.3} of all-token training on the same data",
            self.tokens(),
            self.tokens() as f64 / self.model_parameters as f64,
            self.model_flops(),
            self.patch_fraction(),
            patch_steps as f64 / steps as f64,
            self.cost_by_formula(),
        );
        let _ = write!(text, "{}", flops::FORMULA);
        text
    }
}

impl Config {
    /// The token-level arm of a comparison: the same run without patches, with the model FLOPs or the tokens that this
    /// configuration's plan comes to. Learning rates, warm-up rule, seeds and evaluation stay.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn token_only(&self, equal: EqualBudget) -> Result<Config> {
        let plan = Plan::new(self)?;
        let mut config = self.clone();
        let train = &mut config.train;
        (train.steps, train.tokens, train.flops) = match equal {
            EqualBudget::Compute => (None, None, Some(plan.model_flops())),
            EqualBudget::Tokens => (None, Some(plan.tokens()), None),
        };
        (train.patch_fraction, train.step_fraction) = (Some(0.0), None);
        Ok(config)
    }
}

/// The stages that could occur, patch stages first, the token stage last, with no steps yet.
fn candidates(config: &Config) -> Vec<Stage> {
    let sizes = config.train.stage_patch_sizes().into_iter().filter(|&k| k > 1);
    let mut stages: Vec<Stage> =
        sizes.map(|k| Stage::new(config, StageName::Patch, config.train.patch_regime(k))).collect();
    stages.push(Stage::new(config, StageName::Token, Regime::token()));
    stages
}

/// Share of every candidate stage, of tokens and of steps; each sums to 1.
struct Shares {
    tokens: Vec<f64>,
    steps: Vec<f64>,
}

fn shares(train: &TrainConfig, stages: &[Stage]) -> Shares {
    let patch_stages = stages.len() - 1;
    let weights = train.patch_shares.clone().unwrap_or_else(|| vec![1.0; patch_stages]);
    let whole: f64 = weights.iter().sum();
    let divide = |patches: f64| -> Vec<f64> {
        if patch_stages == 0 {
            return vec![1.0];
        }
        weights.iter().map(|weight| patches * weight / whole).chain([1.0 - patches]).collect()
    };
    let convert = |given: &[f64], factor: &dyn Fn(&Stage) -> f64| -> Vec<f64> {
        let scaled: Vec<f64> = given.iter().zip(stages).map(|(share, stage)| share * factor(stage)).collect();
        let sum: f64 = scaled.iter().sum();
        scaled.into_iter().map(|share| share / sum).collect()
    };
    match train.step_fraction {
        Some(r) => {
            let steps = divide(r);
            Shares { tokens: convert(&steps, &|stage| stage.tokens_per_step as f64), steps }
        }
        None => {
            let tokens = divide(train.patch_fraction.unwrap_or(0.0));
            Shares { steps: convert(&tokens, &|stage| 1.0 / stage.tokens_per_step as f64), tokens }
        }
    }
}

/// Steps of every candidate stage under the budget.
fn stage_steps(train: &TrainConfig, stages: &[Stage], shares: &Shares) -> Result<Vec<u64>> {
    let steps = if let Some(steps) = train.steps {
        divide_steps(steps, &shares.steps)
    } else if let Some(tokens) = train.tokens {
        steps_for_tokens(tokens, stages, &shares.tokens)
    } else {
        steps_for_flops(train.flops.unwrap_or(0.0), stages, &shares.steps)
    };
    if steps.iter().sum::<u64>() > 0 {
        return Ok(steps);
    }
    // The first stage with a share is the one that the budget would have begun with.
    let first =
        stages.iter().zip(&shares.steps).find(|(_, share)| **share > 0.0).map_or(&stages[0], |(stage, _)| stage);
    let (budget, need) = match (train.tokens, train.flops) {
        (Some(tokens), _) => (format!("{tokens} tokens"), format!("{} tokens", first.tokens_per_step)),
        (_, Some(flops)) => (format!("{flops:e} model FLOPs"), format!("{:.3e}", first.model_flops_per_step)),
        _ => ("0 steps".into(), "1".into()),
    };
    Err(Error::Config(format!(
        "the budget of {budget} does not reach for one step, which takes {need}: give more, or make steps smaller with \
         --batch-size or --seq-len"
    )))
}

/// Refuses runs whose totals would not fit their counters.
fn check_total(stages: &[Stage], steps: &[u64]) -> Result<()> {
    let tokens: f64 = stages.iter().zip(steps).map(|(stage, &steps)| steps as f64 * stage.tokens_per_step as f64).sum();
    if tokens > 1e18 {
        return Err(Error::Config(format!(
            "the budget comes to {tokens:.1e} tokens, beyond the 1e18 that a run can count: give a smaller one"
        )));
    }
    Ok(())
}

/// Cuts `steps` at round(share so far * steps): two stages get round(r * steps) and the rest.
fn divide_steps(steps: u64, shares: &[f64]) -> Vec<u64> {
    let mut before = 0;
    let mut so_far = 0.0;
    let mut parts = Vec::with_capacity(shares.len());
    for (index, share) in shares.iter().enumerate() {
        so_far += share;
        let last = shares[index + 1..].iter().all(|&rest| rest <= 0.0);
        // Sums of shares are rounded; the end of the last stage is the end of the run all the same.
        let end = if last { steps } else { ((so_far * steps as f64).round() as u64).clamp(before, steps) };
        parts.push(end - before);
        before = end;
    }
    parts
}

/// The steps whose tokens come closest to `tokens`: each stage to its share, the last to what is left.
fn steps_for_tokens(tokens: u64, stages: &[Stage], shares: &[f64]) -> Vec<u64> {
    let last = shares.iter().rposition(|&share| share > 0.0).unwrap_or(0);
    let mut left = tokens as f64;
    let mut parts = Vec::with_capacity(shares.len());
    for (index, (stage, share)) in stages.iter().zip(shares).enumerate() {
        let asked = if index == last { left } else { share * tokens as f64 };
        let steps = (asked / stage.tokens_per_step as f64).round().max(0.0);
        left -= steps * stage.tokens_per_step as f64;
        parts.push(if index > last { 0 } else { steps as u64 });
    }
    parts
}

/// The largest number of steps that costs no more than `budget`.
fn steps_for_flops(budget: f64, stages: &[Stage], shares: &[f64]) -> Vec<u64> {
    // Totals above 2^53 are rounded; a budget that is the cost of a run must give back that run.
    let budget = budget * (1.0 + 1e-12);
    let affordable = |steps: u64| {
        let parts = divide_steps(steps, shares);
        let cost: f64 = parts.iter().zip(stages).map(|(&part, stage)| part as f64 * stage.model_flops_per_step).sum();
        cost <= budget
    };
    let cheapest = stages.iter().map(|stage| stage.model_flops_per_step).fold(f64::INFINITY, f64::min);
    // Bisection between what is affordable and what is not, even if every step were of the cheapest kind.
    let (mut low, mut high) = (0, (budget / cheapest).min(1e15) as u64 + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if affordable(middle) { low = middle } else { high = middle }
    }
    divide_steps(low, shares)
}

#[cfg(test)]
mod tests;
