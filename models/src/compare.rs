//! Token-level training against patch-then-token training: the same model, data, seeds, learning rates and evaluation windows, at
//! equal model FLOPs or equal tokens. Each arm and seed is a run of its own in a subfolder; costs are what these runs measured.

use std::path::Path;

use serde_json::json;

use crate::config::Config;
use crate::report::{Arm, CompareReport, SeedRun};
use crate::train::stages::{EqualBudget, Plan, StageName};
use crate::train::{self, Observer, Outcome, PATCH_ARM, RunFolder, Start, TOKEN_ARM};
use crate::{Error, Result, atomic_file};

/// What a comparison is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// What both arms have in common.
    pub budget: EqualBudget,
    /// Runs of each arm, with seeds from `train.seed` on.
    pub seeds: u64,
    /// Continue the comparison in the folder: finished runs are not made again.
    pub resume: bool,
}

/// Follows a comparison: the runs, and which one it is.
pub trait ComparisonObserver: Observer {
    /// Run `number` of `count` begins.
    fn run(&mut self, arm: &str, seed: u64, number: u64, count: u64);
}

/// One regime.
struct Regime {
    name: String,
    folder: &'static str,
    config: Config,
    plan: Plan,
}

/// Runs both arms for every seed in subfolders of `folder` and writes `results.json` and `report.html` there. `None` where it was
/// asked to stop before the end.
///
/// # Errors
/// Those of [`train::run`]; no seeds; a configuration without patches; a folder that holds a run or another comparison.
pub fn compare(
    config: &Config,
    folder: &Path,
    comparison: &Comparison,
    observer: &mut dyn ComparisonObserver,
) -> Result<Option<CompareReport>> {
    let regimes = regimes(config, comparison)?;
    let folder = if comparison.resume {
        let folder = RunFolder::open_comparison(folder)?;
        config.check_same_run(&folder.recorded()?, &format!("`{}`", folder.config().display()))?;
        folder
    } else {
        RunFolder::create(folder, config)?
    };
    let _lock = folder.lock()?;
    let dataset = train::make_dataset(config, &folder.data())?;
    let mut arms: Vec<Arm> = regimes
        .iter()
        .map(|regime| Arm {
            name: regime.name.clone(),
            cost_by_formula: regime.plan.cost_by_formula(),
            seeds: Vec::new(),
        })
        .collect();
    let mut number = 0;
    for index in 0..comparison.seeds {
        for (regime, arm) in regimes.iter().zip(&mut arms) {
            let mut config = regime.config.clone();
            config.train.seed += index;
            let seed = config.train.seed;
            number += 1;
            observer.run(&regime.name, seed, number, comparison.seeds * regimes.len() as u64);
            let run = folder.path().join(regime.folder).join(format!("seed-{seed}"));
            let resume = comparison.resume && run.join("config.toml").is_file();
            let start = Start { resume, dataset: Some(&dataset) };
            let outcome = train::run(&config, &run, start, observer)?;
            let title = format!("{}, seed {seed}", regime.name);
            outcome.report(title)?.write(&run.join("report.html"))?;
            match seed_run(outcome, seed) {
                Some(finished) => arm.seeds.push(finished),
                None => return Ok(None),
            }
        }
    }
    let report = CompareReport {
        title: format!("Comparison in {}", folder.path().display()),
        budget: comparison.budget,
        config_toml: config.to_toml()?,
        parameters: config.model.parameters() as u64,
        arms,
        notes: notes(config, &regimes),
    };
    write_results(&report, &folder.path().join("results.json"))?;
    report.write(&folder.report())?;
    Ok(Some(report))
}

/// The two arms, baseline first.
fn regimes(config: &Config, comparison: &Comparison) -> Result<[Regime; 2]> {
    let plan = Plan::new(config)?;
    if !plan.stages.iter().any(|stage| stage.name == StageName::Patch) {
        return Err(Error::Config(
            "there is nothing to compare: no step of the run is made in patches. Give --patch-fraction above 0 and a --patch-size \
             above 1"
                .into(),
        ));
    }
    let last = comparison.seeds.checked_sub(1).and_then(|more| config.train.seed.checked_add(more));
    if last.is_none_or(|last| i64::try_from(last).is_err()) {
        return Err(Error::Config(format!(
            "--seeds {} from seed {} on cannot be: give at least 1, and seeds below 2^63",
            comparison.seeds, config.train.seed
        )));
    }
    let sizes: Vec<String> = config.train.stage_patch_sizes().iter().map(usize::to_string).collect();
    let token_only = config.token_only(comparison.budget)?;
    Ok([
        Regime {
            name: "token-level only".into(),
            folder: TOKEN_ARM,
            plan: Plan::new(&token_only)?,
            config: token_only,
        },
        Regime {
            name: format!("patch-then-token, K = {}", sizes.join(", ")),
            folder: PATCH_ARM,
            plan,
            config: config.clone(),
        },
    ])
}

fn seed_run(outcome: Outcome, seed: u64) -> Option<SeedRun> {
    let totals = outcome.plan.totals(outcome.steps);
    Some(SeedRun {
        seed,
        initial: Some(outcome.initial.into()),
        evaluation: outcome.evaluation?.into(),
        tokens: totals.tokens,
        epochs: outcome.epochs(),
        model_flops: totals.model_flops,
        seconds: outcome.seconds(),
        records: outcome.records,
    })
}

fn notes(config: &Config, regimes: &[Regime; 2]) -> Vec<String> {
    let [token, patch] = regimes;
    vec![
        format!(
            "Both arms: learning rate {}, {} schedule, the same warm-up rule, data, seeds and evaluation windows; {} steps at token \
             level against {} in both stages.",
            config.train.lr,
            config.train.schedule,
            token.plan.steps(),
            patch.plan.steps()
        ),
        "Seconds are those of training steps; evaluation and checkpoints are not counted.".into(),
        format!("{}.", crate::flops::FORMULA),
    ]
}

/// The numbers of a comparison for other programs.
fn write_results(report: &CompareReport, path: &Path) -> Result<()> {
    let budget = match report.budget {
        EqualBudget::Compute => "compute",
        EqualBudget::Tokens => "tokens",
    };
    let run = |run: &SeedRun| {
        json!({
            "seed": run.seed,
            "val_loss": run.evaluation.loss,
            "perplexity": run.evaluation.perplexity(),
            "bits_per_byte": run.evaluation.bits_per_byte,
            "tokens": run.tokens,
            "epochs": run.epochs,
            "model_flops": run.model_flops,
            "seconds": run.seconds,
        })
    };
    let arm = |arm: &Arm| {
        json!({
            "name": arm.name,
            "cost_by_formula": arm.cost_by_formula,
            "runs": arm.seeds.iter().map(run).collect::<Vec<_>>(),
        })
    };
    let results = json!({
        "budget": budget,
        "parameters": report.parameters,
        "arms": report.arms.iter().map(arm).collect::<Vec<_>>(),
    });
    atomic_file::replace(path, format!("{results:#}\n").as_bytes())
}
