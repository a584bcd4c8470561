//! `patchgpt eval`: loss, perplexity and bits per byte of a model over text, always at token level.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use patchgpt_models::config::Config;
use patchgpt_models::data::{Dataset, EvaluationSet, Text, TokenFile, Tokenizer};
use patchgpt_models::evaluate::evaluate;
use patchgpt_models::train::{self, RunFolder, model_folder};
use patchgpt_models::{Error, Result, hub};
use serde_json::json;

use crate::output::{print_line, tell};
use crate::runs;
use crate::settings::machine;

/// Windows per forward pass where no run says how many.
const SEQUENCES: usize = 8;

/// Loss, perplexity and bits per byte of a trained model.
///
/// Of a run and without --data, over the same windows of the validation text as during training, so that the numbers are the same;
/// with --data over all of that text. Bits per byte do not depend on the tokenizer.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// A run or a Hugging Face folder; without it the newest finished run in runs
    model: Option<String>,

    /// Text to evaluate on: a UTF-8 file or a folder of them. Without it the validation text of the run
    #[arg(long, value_name = "PATH")]
    data: Option<String>,

    /// Print one JSON object instead of a sentence, for scripts
    #[arg(long)]
    json: bool,

    /// Score only so many windows, spread evenly over the text, to be quicker
    #[arg(long, value_name = "N")]
    windows: Option<usize>,

    /// Tokens per window; without it that of the run, or as many as the model has positions
    #[arg(long, value_name = "T")]
    seq_len: Option<usize>,

    /// Where to compute, such as cpu or cuda; without it where the run was
    #[arg(long, value_name = "NAME")]
    device: Option<String>,

    /// Threads, one per core without it
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let path = model_path(args.model.as_deref())?;
    let folder = model_folder(&path)?;
    let recorded = recorded(&path)?;
    let device = recorded.clone().map_or(Config::preset("tiny")?.device, |config| config.device);
    let device = machine(device, args.device.as_deref(), args.threads)?;
    let gpt = hub::load(&folder, train::dtype(&device), &train::open_device(&device)?)?;
    let tokenizer = Tokenizer::load(&folder)?;
    let own_text = args.data.is_none();
    let run = recorded.as_ref().filter(|_| own_text);
    let positions = args.seq_len.or(recorded.as_ref().map(|config| config.train.seq_len));
    let windows = args.windows.or(run.map(|config| config.train.evaluation_windows));
    let sequences = run.map_or(SEQUENCES, |config| config.train.micro_batch.unwrap_or(config.train.batch_size));

    let scratch = tempfile::tempdir().map_err(Error::io("create a folder in", std::env::temp_dir()))?;
    let (file, name) = tokens(args, &path, recorded.as_ref(), &tokenizer, scratch.path())?;
    let set = EvaluationSet::new(file, &tokenizer, positions.unwrap_or(gpt.config().max_positions), windows)?;
    let found = evaluate(&gpt, &set, sequences)?;
    if !found.loss.is_finite() {
        return Err(Error::Data(format!(
            "the loss over {name} is {}: the weights in `{}` are damaged or diverged",
            found.loss,
            folder.display()
        )));
    }
    if args.json {
        let results = json!({
            "model": path.display().to_string(),
            "text": name,
            "loss": found.loss,
            "perplexity": found.perplexity,
            "bits_per_byte": found.bits_per_byte,
            "tokens": found.tokens,
            "bytes": found.bytes,
        });
        print_line(&results.to_string())?;
    } else {
        print_line(&format!(
            "{} on {name}: loss {:.4} nats per token, perplexity {:.3}, {:.4} bits per byte, over {} tokens ({} bytes)",
            path.display(),
            found.loss,
            found.perplexity,
            found.bits_per_byte,
            found.tokens,
            found.bytes
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The folder that was named, or the newest finished run.
pub(crate) fn model_path(named: Option<&str>) -> Result<PathBuf> {
    match named {
        Some(path) => Ok(path.into()),
        None => {
            let path = runs::newest("model/config.json", "no finished run")?;
            tell(&format!("the model is {}", path.display()));
            Ok(path)
        }
    }
}

/// The configuration of the run, if it is one.
fn recorded(path: &Path) -> Result<Option<Config>> {
    if path.join("config.toml").is_file() && !path.join("config.json").is_file() {
        return RunFolder::open(path)?.recorded().map(Some);
    }
    Ok(None)
}

/// The tokens to score and what they are called: those of the run where it still has them, else made from the text.
fn tokens(
    args: &Args,
    path: &Path,
    recorded: Option<&Config>,
    tokenizer: &Tokenizer,
    scratch: &Path,
) -> Result<(Arc<TokenFile>, String)> {
    if let Some(data) = &args.data {
        let text = Text::load(Path::new(data))?;
        let file = TokenFile::create(&scratch.join("text.tokens"), &text, tokenizer)?;
        return Ok((Arc::new(file), data.clone()));
    }
    if let (Some(_), Ok(own)) = (recorded, Tokenizer::load(&path.join("data")))
        && own.identity() == tokenizer.identity()
        && let Ok(dataset) = Dataset::open(&path.join("data"), own)
    {
        return Ok((dataset.validation, "the validation text of the run".into()));
    }
    let (text, fraction) = match recorded {
        Some(config) => (train::load_text(config)?, config.data.validation_fraction),
        None => (Text::shipped(), patchgpt_models::data::VALIDATION_FRACTION),
    };
    let name = format!("the validation part of {}", text.name());
    let (_, validation) = text.split(fraction)?;
    let file = TokenFile::create(&scratch.join("text.tokens"), &validation, tokenizer)?;
    Ok((Arc::new(file), name))
}
