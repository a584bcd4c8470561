//! Programs that work when asked, for the comparisons with other libraries (`benches/peers/`): they answer every line that they read with one
//! JSON object on a line.

use std::io::{BufRead, Write};

use patchgpt_models::{Error, Result};
use serde_json::Value;

/// Prints an answer.
///
/// # Errors
/// An output that nobody reads any more.
pub fn say(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}").and_then(|()| out.flush()).map_err(Error::io("write", "standard output"))
}

/// Answers every line of the input until it ends.
///
/// # Errors
/// Those of `answer`; an input that cannot be read.
pub fn answer_lines(mut answer: impl FnMut(&str) -> Result<Value>) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        say(&answer(&line.map_err(Error::io("read", "standard input"))?)?)?;
    }
    Ok(())
}

/// Runs a program with its arguments; an error is told and ends it with status 1.
pub fn main(program: impl FnOnce(Vec<String>) -> Result<()>) {
    if let Err(error) = program(std::env::args().skip(1).collect()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}
