//! Progress of a run: in a terminal a bar for each stage, elsewhere a plain line every few seconds.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use patchgpt_models::compare::ComparisonObserver;
use patchgpt_models::evaluate::Evaluation;
use patchgpt_models::train::metrics::Record;
use patchgpt_models::train::stages::Stage;
use patchgpt_models::train::{Observer, Setup};

use crate::output::{print_line, tell};

/// Time between plain lines.
const PAUSE: Duration = Duration::from_secs(5);

/// Shows a run, or the runs of a comparison one after the other.
pub(crate) struct Progress {
    stop: Arc<AtomicBool>,
    stage: Option<Shown>,
    evaluation: Option<Evaluation>,
}

/// The stage that is shown.
struct Shown {
    name: String,
    first_step: u64,
    steps: u64,
    /// Steps that were made before this session.
    done: u64,
    begun: Instant,
    told: Instant,
    /// `None` where there is no terminal.
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Nothing is shown before the run begins. The run is asked to stop when `stop` becomes true.
    pub(crate) fn new(stop: Arc<AtomicBool>) -> Self {
        Progress { stop, stage: None, evaluation: None }
    }

    /// Says something above the bar.
    fn say(&self, text: &str) {
        match self.stage.as_ref().and_then(|stage| stage.bar.as_ref()) {
            Some(bar) => bar.suspend(|| tell(text)),
            None => tell(text),
        }
    }

    /// Loss, speed and validation of the step.
    fn message(&self, record: &Record) -> String {
        let floor = record.loss_above_floor.map_or(String::new(), |above| format!(" ({above:.3} above its floor)"));
        let validation = self
            .evaluation
            .map_or(String::new(), |evaluation| format!(", validation {:.3} bits per byte", evaluation.bits_per_byte));
        format!("loss {:.3}{floor}{validation}, {:.0} tokens/s", record.loss, record.tokens_per_second)
    }
}

impl Shown {
    fn new(index: usize, stage: &Stage, done: u64) -> Self {
        let name = match stage.regime.input_patch.max(stage.regime.target_patch) {
            1 => format!("stage {}, tokens", index + 1),
            k => format!("stage {}, patches of {k}", index + 1),
        };
        let now = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = "{prefix} {bar:24} {pos}/{len}  {msg}, {eta} left";
            // The template is a constant; were it wrong, the plain bar would do.
            let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(stage.steps).with_style(style).with_prefix(name.clone()).with_position(done);
            bar.reset_eta();
            bar
        });
        Shown { name, first_step: stage.first_step, steps: stage.steps, done, begun: now, told: now, bar }
    }

    /// Time left, from the steps of this session.
    fn left(&self, made: u64) -> HumanDuration {
        let own = made.saturating_sub(self.done).max(1) as f64;
        let left = self.begun.elapsed().as_secs_f64() / own * (self.steps - made) as f64;
        HumanDuration(Duration::from_secs_f64(left.clamp(0.0, 1e9)))
    }
}

impl Observer for Progress {
    fn begin(&mut self, setup: &Setup<'_>) {
        // That standard output has no reader is found when the result is printed.
        let _ = print_line(&format!(
            "{} parameters, {} ids; {} tokens to train on, {} of {} validation tokens scored; {}\n{}",
            setup.parameters,
            setup.vocabulary,
            setup.training_tokens,
            setup.scored_tokens,
            setup.validation_tokens,
            setup.device,
            setup.plan.describe()
        ));
        self.stage = None;
        self.evaluation = None;
        if setup.done > 0 {
            self.say(&format!("continuing after step {} of {}", setup.done, setup.plan.steps()));
        }
    }

    fn stage(&mut self, index: usize, stage: &Stage, done: u64) {
        self.stage = Some(Shown::new(index, stage, done));
    }

    fn step(&mut self, record: &Record) {
        let message = self.message(record);
        let Some(stage) = &mut self.stage else { return };
        let made = record.step - stage.first_step;
        if let Some(bar) = &stage.bar {
            bar.set_message(message);
            bar.set_position(made);
            if made == stage.steps {
                bar.abandon();
            }
        } else if stage.told.elapsed() >= PAUSE || made == stage.steps {
            stage.told = Instant::now();
            let left = if made == stage.steps { "done".into() } else { format!("{:#} left", stage.left(made)) };
            tell(&format!("{}: step {made}/{}, {message}, {left}", stage.name, stage.steps));
        }
    }

    fn evaluated(&mut self, step: u64, evaluation: &Evaluation) {
        if step == 0 {
            self.say(&format!("before training: validation {:.3} bits per byte", evaluation.bits_per_byte));
        }
        self.evaluation = Some(*evaluation);
    }

    fn notice(&mut self, sentence: &str) {
        self.say(&format!("note: {sentence}"));
    }

    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

impl ComparisonObserver for Progress {
    fn run(&mut self, arm: &str, seed: u64, number: u64, count: u64) {
        self.stage = None;
        tell(&format!("\nrun {number} of {count}: {arm}, seed {seed}"));
    }
}
