//! The text that a finished run writes to show what it learned: the first one of its seed, after a line end.

use std::ops::ControlFlow;

use crate::Result;
use crate::data::Tokenizer;
use crate::generate::{Sampling, generate};
use crate::gpt::Gpt;

/// What the sample continues.
const PROMPT: &str = "\n";
/// Bytes after which it ends.
const BYTES: usize = 700;
/// A little below 1: a small model's rarest guesses are its worst.
const TEMPERATURE: f64 = 0.8;

/// A sample of about 700 bytes.
///
/// # Errors
/// Logits that are no numbers; a failure of the device.
pub fn sample(gpt: &Gpt, tokenizer: &Tokenizer, seed: u64) -> Result<String> {
    let prompt = tokenizer.encode(PROMPT)?;
    if prompt.is_empty() {
        return Ok(String::new());
    }
    let sampling = Sampling { temperature: TEMPERATURE, seed, ..Sampling::default() };
    let mut bytes = 0;
    // A model may have more rows than its tokenizer has ids; what those stand for is nothing.
    let known = |id: i32| usize::try_from(id).is_ok_and(|id| id < tokenizer.vocabulary());
    let mut ids = generate(gpt, &prompt, BYTES, &sampling, |id| {
        bytes += tokenizer.token_bytes(id);
        if bytes < BYTES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    ids.retain(|&id| known(id));
    tokenizer.decode(&ids)
}
