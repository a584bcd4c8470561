//! `patchgpt generate`: text from a model, printed as it is made.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Instant;

use patchgpt_models::config::Config;
use patchgpt_models::data::Tokenizer;
use patchgpt_models::generate::{Sampling, generate};
use patchgpt_models::train::{self, model_folder};
use patchgpt_models::{Result, hub};

use crate::eval::model_path;
use crate::output::{print, print_line, tell};
use crate::settings::machine;

/// Text from a trained model.
///
/// The prompt is printed first, then what the model adds, token by token, over a cache of keys and values.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// A run or a Hugging Face folder; without it the newest finished run in runs
    model: Option<String>,

    /// Text to continue; without it a line end
    #[arg(long, value_name = "TEXT", default_value = "\n", hide_default_value = true, allow_hyphen_values = true)]
    prompt: String,

    /// Tokens to add
    #[arg(long, value_name = "N", default_value_t = 300)]
    max_tokens: usize,

    /// Divides the logits: below 1 safer, above 1 wilder, 0 always the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f64,

    /// Draw only from the K likeliest tokens, which keeps out absurd ones
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,

    /// Draw only from the likeliest tokens that together hold this probability, however many they are
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,

    /// Decides the draws: the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Where to compute, such as cuda; without it cpu
    #[arg(long, value_name = "NAME")]
    device: Option<String>,

    /// Threads, one per core without it
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    sampling.validate()?;
    let path = model_path(args.model.as_deref())?;
    let folder = model_folder(&path)?;
    let device = machine(Config::preset("tiny")?.device, args.device.as_deref(), args.threads)?;
    let gpt = hub::load(&folder, train::dtype(&device), &train::open_device(&device)?)?;
    let tokenizer = Tokenizer::load(&folder)?;
    let prompt = tokenizer.encode(&args.prompt)?;
    let mut stream = Stream::new(&tokenizer, &prompt);
    print(&args.prompt)?;
    let mut failed = None;
    let begun = Instant::now();
    let new = generate(&gpt, &prompt, args.max_tokens, &sampling, |id| match stream.push(id) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    stream.finish()?;
    let seconds = begun.elapsed().as_secs_f64().max(1e-9);
    tell(&format!("{} tokens in {seconds:.1} s, {:.0} tokens/s", new.len(), new.len() as f64 / seconds));
    Ok(ExitCode::SUCCESS)
}

/// Ids to text as they come. What a token adds depends on the tokens before it (spaces, characters of several tokens), so the last
/// few are decoded again and only what is new is printed; a character is printed when it is whole.
struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<i32>,
    /// Ids from here on are decoded.
    from: usize,
    /// Ids up to here are printed.
    printed: usize,
}

/// Ids of the prompt that the first new ones are decoded with.
const BEFORE: usize = 8;

/// Ids after which text is printed although its last character is not whole: no character has more bytes.
const LONGEST: usize = 8;

impl<'a> Stream<'a> {
    fn new(tokenizer: &'a Tokenizer, prompt: &[i32]) -> Self {
        let ids = prompt[prompt.len().saturating_sub(BEFORE)..].to_vec();
        Stream { tokenizer, printed: ids.len(), ids, from: 0 }
    }

    fn push(&mut self, id: i32) -> Result<()> {
        // A model may have more rows than its tokenizer has ids; what those stand for is nothing.
        if usize::try_from(id).map_or(true, |id| id >= self.tokenizer.vocabulary()) {
            return Ok(());
        }
        self.ids.push(id);
        self.flush(false)
    }

    fn flush(&mut self, all: bool) -> Result<()> {
        let known = self.tokenizer.decode(&self.ids[self.from..self.printed])?;
        let text = self.tokenizer.decode(&self.ids[self.from..])?;
        let torn = text.ends_with('\u{fffd}') && self.ids.len() - self.printed < LONGEST;
        if torn && !all {
            return Ok(());
        }
        if let Some(new) = text.get(known.len()..) {
            print(new)?;
        }
        (self.from, self.printed) = (self.printed, self.ids.len());
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.flush(true)?;
        print_line("")
    }
}
