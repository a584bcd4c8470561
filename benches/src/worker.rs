//! Programs that work when asked, for the comparisons with other libraries (`benches/peers/`): they answer every line that they read with one
//! JSON object on a line.

use std::io::{BufRead, Write};

use patchgpt_models::config::{Config, Layers};
use patchgpt_models::{Error, Result};
use serde_json::Value;

/// The configuration that `SECTION.KEY=VALUE` arguments, as of `patchgpt --set`, make of the defaults.
///
/// # Errors
/// A key that there is not, a value that it does not take.
pub fn configuration(arguments: &[String]) -> Result<Config> {
    let layers = arguments.iter().try_fold(Layers::new(), |layers, assignment| layers.set(assignment))?;
    // The models that are measured have a vocabulary of their own, or their tokenizer is learned: there is none to read.
    Config::resolve(layers, |path| Err(Error::Config(format!("a tokenizer ({}) is of no use here", path.display()))))
}

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
