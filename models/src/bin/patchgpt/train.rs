//! `patchgpt train`: a run from the first step to the report, or on from where it was stopped.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use patchgpt_models::Result;
use patchgpt_models::report::{StageSummary, patch_speed_up};
use patchgpt_models::train::{self, Outcome, RunFolder, Start};

use crate::interrupt::{self, STOPPED};
use crate::output::{print_line, tell};
use crate::progress::Progress;
use crate::runs;
use crate::settings::{Settings, keys_help};

/// Trains a model, in patches first and in tokens after.
///
/// Needs no argument: it then trains a small model on the plays of Shakespeare in a few minutes. Settings come from the preset,
/// over it the --config file, over that --set, over that the other flags.
#[derive(clap::Args, Debug)]
#[command(after_long_help = keys_help(), args_override_self = true)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: Settings,

    /// Folder of the run; without it runs/PRESET-N. A folder that holds a run is never written over
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    out: Option<String>,

    /// Continue the run in --out (without it the newest in runs) from its newest whole checkpoint, to the bit
    #[arg(long, help_heading = "Run")]
    resume: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (config, folder) = if args.resume {
        let folder = match &args.out {
            Some(out) => PathBuf::from(out),
            None => runs::newest("metrics.jsonl", "no run to continue")?,
        };
        (args.settings.resolve(Some(&RunFolder::open(&folder)?))?, folder)
    } else {
        let config = args.settings.resolve(None)?;
        // A plan that cannot be made is told before a folder is.
        train::stages::Plan::new(&config)?;
        let folder = match &args.out {
            Some(out) => PathBuf::from(out),
            None => runs::new_folder(config.model.preset.as_deref().unwrap_or("model"))?,
        };
        (config, folder)
    };
    let mut progress = Progress::new(interrupt::listen()?);
    tell(&format!("the run is in {}", folder.display()));
    let start = Start { resume: args.resume, dataset: None };
    let outcome = train::run(&config, &folder, start, &mut progress)?;
    let report = folder.join("report.html");
    outcome.report(folder.display().to_string())?.write(&report)?;
    if outcome.is_finished() {
        conclude(&outcome, &folder)?;
        return Ok(ExitCode::SUCCESS);
    }
    print_line(&format!(
        "stopped after step {} of {}; continue with: patchgpt train --resume --out {}",
        outcome.steps,
        outcome.plan.steps(),
        folder.display()
    ))?;
    Ok(ExitCode::from(STOPPED))
}

/// What a finished run tells.
fn conclude(outcome: &Outcome, folder: &Path) -> Result<()> {
    if let Some(evaluation) = outcome.evaluation {
        print_line(&format!(
            "\nvalidation: loss {:.4} nats per token, perplexity {:.3}, {:.4} bits per byte (before training {:.4}), over {} tokens",
            evaluation.loss,
            evaluation.perplexity,
            evaluation.bits_per_byte,
            outcome.initial.bits_per_byte,
            evaluation.tokens
        ))?;
    }
    let stages = StageSummary::from_records(&outcome.records, &outcome.plan.stages);
    for stage in &stages {
        let speed = stage.tokens_per_second().unwrap_or(0.0);
        print_line(&format!(
            "{} stage, K = {}: {} steps, {} tokens in {:.1} s, {speed:.0} tokens/s, {:.2e} model FLOP/s",
            stage.stage,
            stage.patch_size,
            stage.steps,
            stage.tokens,
            stage.seconds,
            if stage.seconds > 0.0 { stage.model_flops / stage.seconds } else { 0.0 }
        ))?;
    }
    if let Some(ratio) = patch_speed_up(&stages) {
        print_line(&format!("patches read text {ratio:.2} times as fast as tokens"))?;
    }
    if !outcome.sample.is_empty() {
        print_line(&format!(
            "\nsample of seed {}:\n----\n{}\n----",
            outcome.config.train.seed,
            outcome.sample.trim_matches('\n')
        ))?;
    }
    print_line("\nwrote")?;
    for (part, what) in [
        ("report.html", "curves and numbers, for a browser"),
        ("model", "weights and tokenizer in Hugging Face layout"),
        ("metrics.jsonl", "one line a step"),
        ("config.toml", "everything that decided the run"),
        ("checkpoints", "to continue from"),
    ] {
        print_line(&format!("  {:<44} {what}", folder.join(part).display()))?;
    }
    Ok(())
}
