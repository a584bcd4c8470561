//! `patchgpt inspect`: logits, loss and gradients of a model for given tokens, as a file for other programs to compare with.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use patchgpt_models::config::Config;
use patchgpt_models::inspect::Inspection;
use patchgpt_models::train::{self, model_folder};
use patchgpt_models::{Error, Result, hub};

use crate::output::print_line;
use crate::settings::machine;

/// Logits, loss and gradients of a model for given tokens.
///
/// Writes a safetensors file with `logits` [T, V], `loss` and `grad.NAME` of every parameter under the name and in the shape that
/// transformers gives it, all f32. K*T tokens are T positions; the first T-1 are scored against the next, as transformers does with
/// labels that are the input. A tied head's gradient is part of the embedding's.
#[derive(clap::Args, Debug)]
#[command(args_override_self = true)]
pub(crate) struct Args {
    /// A run or a Hugging Face folder (LLaMA or GPT-2)
    #[arg(long, value_name = "DIR")]
    model: PathBuf,

    /// The tokens, as numbers with commas between them
    #[arg(long, value_name = "1,2,3,...", allow_hyphen_values = true)]
    tokens: String,

    /// Tokens in a patch
    #[arg(long, value_name = "K", default_value_t = 1)]
    patch_size: usize,

    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// What to compute in: f32, f64 or bf16; the file holds f32 whatever it is
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: String,

    /// Where to compute, such as cpu or cuda
    #[arg(long, value_name = "NAME")]
    device: Option<String>,

    /// Threads, one per core without it
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let tokens = parse(&args.tokens)?;
    let mut device = Config::preset("tiny")?.device;
    device.dtype = args.dtype.parse()?;
    let device = machine(device, args.device.as_deref(), args.threads)?;
    let folder = model_folder(&args.model)?;
    let gpt = hub::load(&folder, train::dtype(&device), &train::open_device(&device)?)?;
    check_place(&args.out)?;
    let found = Inspection::new(&gpt, &tokens, args.patch_size)?;
    found.write(&args.out)?;
    print_line(&format!(
        "{}: loss {:.6} over {} positions; logits {:?} and {} gradients are in {}",
        args.model.display(),
        found.loss(),
        found.logits().dim(0) - 1,
        found.logits().shape(),
        found.gradients()?.len(),
        args.out.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn parse(tokens: &str) -> Result<Vec<i32>> {
    let number = |part: &str| {
        part.trim().parse().map_err(|_| {
            Error::Config(format!("--tokens {tokens}: `{}` is no token; give numbers such as 5,17,3", part.trim()))
        })
    };
    tokens.split(',').map(number).collect()
}

/// A folder in the place of the file would only be met by the rename.
fn check_place(path: &Path) -> Result<()> {
    match path.is_dir() {
        true => Err(Error::Config(format!("--out {} is a folder: name a file in it", path.display()))),
        false => Ok(()),
    }
}
