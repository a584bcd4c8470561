//! `patchgpt compare`: the same training with and without patches, at equal cost, over several seeds.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use patchgpt_models::Result;
use patchgpt_models::compare::{Comparison, compare};
use patchgpt_models::report::compare_table;
use patchgpt_models::train::RunFolder;
use patchgpt_models::train::stages::EqualBudget;

use crate::interrupt::{self, STOPPED};
use crate::output::{print_line, tell};
use crate::progress::Progress;
use crate::runs;
use crate::settings::{Settings, keys_help};

/// Trains with and without patches at equal cost and compares.
///
/// Both arms get the same model, data, seeds, learning rates, warm-up rule and evaluation windows. One run decides little: with
/// several --seeds the table shows mean and spread.
#[derive(clap::Args, Debug)]
#[command(after_long_help = keys_help(), args_override_self = true)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: Settings,

    /// What both arms have in common; equal data at few tokens per parameter favours token-level training
    #[arg(long, value_enum, default_value_t = Budget::Compute, help_heading = "Comparison")]
    budget: Budget,

    /// Runs of each arm, with seeds from --seed on
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Comparison")]
    seeds: u64,

    /// Folder of the comparison; without it runs/compare-PRESET-N
    #[arg(long, value_name = "DIR", help_heading = "Comparison")]
    out: Option<String>,

    /// Continue the comparison in --out (without it the newest in runs); finished runs are not made again
    #[arg(long, help_heading = "Comparison")]
    resume: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Budget {
    /// Equal model FLOPs
    Compute,
    /// Equal tokens
    Tokens,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (config, folder) = if args.resume {
        let folder = match &args.out {
            Some(out) => PathBuf::from(out),
            None => runs::newest("token-only", "no comparison to continue")?,
        };
        (args.settings.resolve(Some(&RunFolder::open_comparison(&folder)?))?, folder)
    } else {
        let config = args.settings.resolve(None)?;
        let folder = match &args.out {
            Some(out) => PathBuf::from(out),
            None => runs::new_folder(&format!("compare-{}", config.model.preset.as_deref().unwrap_or("model")))?,
        };
        (config, folder)
    };
    let budget = match args.budget {
        Budget::Compute => EqualBudget::Compute,
        Budget::Tokens => EqualBudget::Tokens,
    };
    let mut progress = Progress::new(interrupt::listen()?);
    tell(&format!("the comparison is in {}", folder.display()));
    let comparison = Comparison { budget, seeds: args.seeds, resume: args.resume };
    let Some(report) = compare(&config, &folder, &comparison, &mut progress)? else {
        print_line(&format!(
            "stopped; continue with: patchgpt compare --resume --out {} --budget {} --seeds {}",
            folder.display(),
            if budget == EqualBudget::Compute { "compute" } else { "tokens" },
            args.seeds
        ))?;
        return Ok(ExitCode::from(STOPPED));
    };
    print_line(&format!("\n{}", compare_table(&report)))?;
    print_line("\nwrote")?;
    for (part, what) in [
        ("report.html", "curves and numbers, for a browser"),
        ("results.json", "the numbers"),
        ("token-only", "the runs at token level"),
        ("patch-then-token", "the runs with patches"),
    ] {
        print_line(&format!("  {:<44} {what}", folder.join(part).display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
