//! The program `patchgpt`: trains GPTs in patches first and in tokens after, compares that with token-level training, evaluates,
//! generates, writes out what a model computes, and measures speed. One file a subcommand; exit status 0, 1 for a failure, 2 for wrong
//! usage, 130 for a run stopped by Ctrl-C.

mod bench;
mod compare;
mod devices;
mod eval;
mod generate;
mod inspect;
mod interrupt;
mod machine;
mod output;
mod plan;
mod progress;
mod runs;
mod settings;
mod step;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Trains GPTs at patch level and at token level.
///
/// A patch of K tokens is one position of the model: a step reads K times the text at about the same cost. After a share of the
/// tokens in patches, training goes on token by token, and what comes out is an ordinary GPT.
#[derive(Debug, Parser)]
#[command(name = "patchgpt", version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What each does is told by its arguments.
#[derive(Debug, Subcommand)]
enum Command {
    Train(train::Args),
    Compare(compare::Args),
    Eval(eval::Args),
    Generate(generate::Args),
    Inspect(inspect::Args),
    Bench(bench::Args),
    Plan(plan::Args),
    Devices(devices::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Train(args) => train::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Devices(args) => devices::run(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) if output::reader_is_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Some causes come in lines; an error is one paragraph.
            let text = error.to_string();
            let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            output::tell(&format!("error: {}", lines.join(" ")));
            ExitCode::from(error.exit_code() as u8)
        }
    }
}
