//! `patchgpt bench`: how fast training steps are, where their time goes, and how far from the machine's ceilings.

mod table;

use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;
use patchgpt_models::benchmark::benchmark;
use patchgpt_models::config::{Config, Layers, TokenizerChoice};
use patchgpt_models::data::Tokenizer;
use patchgpt_models::train::stages::StageName;
use patchgpt_models::{Error, Result};

use crate::output::{print_line, tell};
use crate::settings::prepare_machine;

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
    /// Model and sizes: bench-s and bench-m are those that speed is compared at
    #[arg(long, value_name = "NAME", default_value = "bench-s", help_heading = "What is measured")]
    preset: String,

    /// Steps of which stage: next-token training, or patches of K tokens
    #[arg(long, value_enum, default_value_t = Level::Token, help_heading = "What is measured")]
    regime: Level,

    /// K, tokens per patch; counts with --regime patch. Without it that of the preset
    #[arg(long, value_name = "K", help_heading = "What is measured")]
    patch_size: Option<String>,

    /// T, positions per sequence
    #[arg(long, value_name = "T", help_heading = "What is measured")]
    seq_len: Option<String>,

    /// B, sequences per step
    #[arg(long, value_name = "B", help_heading = "What is measured")]
    batch_size: Option<String>,

    /// Any key of the configuration, such as train.recompute=true; may be given more than once. `patchgpt help train` lists them
    #[arg(long, value_name = "SECTION.KEY=VALUE", help_heading = "What is measured")]
    set: Vec<String>,

    /// Steps to measure; the median counts
    #[arg(long, value_name = "N", default_value = STEPS, help_heading = "What is measured")]
    steps: String,

    /// Where to compute: cpu, cuda or cuda:emulated
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    device: Option<String>,

    /// Type of weights and activations: f32, bf16 or f64
    #[arg(long, value_name = "TYPE", help_heading = "Machine")]
    dtype: Option<String>,

    /// Threads, one per core without it
    #[arg(long, value_name = "N", help_heading = "Machine")]
    threads: Option<String>,

    /// Print one JSON object instead of a table, for scripts
    #[arg(long, help_heading = "Output")]
    json: bool,

    /// Write the profiled steps as a timeline for Chrome's trace viewer (about:tracing) or Perfetto
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    trace: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Level {
    /// One token in, one token predicted
    Token,
    /// K tokens in, K tokens predicted
    Patch,
}

impl Args {
    /// The configuration that is measured, and its number of steps.
    fn resolve(&self) -> Result<(Config, usize)> {
        let flags = [
            ("--preset", "model.preset", Some(&self.preset)),
            ("--patch-size", "train.patch_size", self.patch_size.as_ref()),
            ("--seq-len", "train.seq_len", self.seq_len.as_ref()),
            ("--batch-size", "train.batch_size", self.batch_size.as_ref()),
            ("--steps", "train.steps", Some(&self.steps)),
            ("--device", "device.device", self.device.as_ref()),
            ("--dtype", "device.dtype", self.dtype.as_ref()),
            ("--threads", "device.threads", self.threads.as_ref()),
        ];
        let mut layers = Layers::new();
        for assignment in &self.set {
            layers = layers.set(assignment)?;
        }
        for (flag, key, value) in flags {
            if let Some(value) = value {
                layers = layers.flag(flag, key, value)?;
            }
        }
        let mut config = Config::resolve(layers, |path| Ok(Tokenizer::load(path)?.vocabulary()))?;
        // No text is read: the ids are random, of the model's vocabulary.
        config.data.tokenizer = TokenizerChoice::Bytes;
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
    let name = match args.regime {
        Level::Token => StageName::Token,
        Level::Patch => StageName::Patch,
    };
    let measured = benchmark(&config, name, steps, |what| tell(&format!("measuring {what}")))?;
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
