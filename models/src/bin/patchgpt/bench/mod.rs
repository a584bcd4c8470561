//! `patchgpt bench`: how fast training steps are, where their time goes, and how far from the machine's ceilings.

mod table;

use std::path::Path;
use std::process::ExitCode;

use patchgpt_models::benchmark::benchmark;
use patchgpt_models::config::Config;
use patchgpt_models::{Error, Result};

use crate::output::{print_line, tell};
use crate::settings::prepare_machine;
use crate::step::StepChoice;

/// Steps measured unless asked otherwise.
const STEPS: &str = "10";

/// Measures training steps: tokens per second, time by op, memory.
///
/// Runs real steps (fresh batches of random ids from the loader, forward, backward, clipping, AdamW) after a warm-up and reports
/// the median. In separate steps a profiler then times every op, and the shares are of the machine's own ceilings, measured in
/// the same run. Use an otherwise idle machine.
#[derive(clap::Args, Debug)]
#[command(args_override_self = true)]
pub(crate) struct Args {
    #[command(flatten)]
    step: StepChoice,

    /// Steps to measure; the median counts
    #[arg(long, value_name = "N", default_value = STEPS, help_heading = "What is measured")]
    steps: String,

    /// Print one JSON object instead of a table, for scripts
    #[arg(long, help_heading = "Output")]
    json: bool,

    /// Write the profiled steps as a timeline for Chrome's trace viewer (about:tracing) or Perfetto
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    trace: Option<String>,
}

impl Args {
    /// The configuration that is measured, and its number of steps.
    fn resolve(&self) -> Result<(Config, usize)> {
        let config = self.step.config(&[("--steps", "train.steps", &self.steps)])?;
        let steps = config.train.steps.unwrap_or_default().try_into().unwrap_or(usize::MAX);
        Ok((config, steps))
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (config, steps) = args.resolve()?;
    prepare_machine(&config.device);
    if let Some(path) = &args.trace {
        // A place that cannot be written to is told before minutes of measuring.
        std::fs::write(path, "").map_err(Error::io("write", path))?;
    }
    let measured = benchmark(&config, args.step.stage(), steps, |what| tell(&format!("measuring {what}")))?;
    if args.json {
        let text = serde_json::to_string(&measured)
            .map_err(|error| Error::Metrics(format!("the measurement cannot be written as JSON: {error}")))?;
        print_line(&text)?;
    } else {
        print_line(&table::text(&measured))?;
    }
    if let Some(path) = &args.trace {
        measured.write_trace(Path::new(path))?;
        tell(&format!("wrote {path}: open it in about:tracing or Perfetto"));
    }
    Ok(ExitCode::SUCCESS)
}
