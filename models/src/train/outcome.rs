//! What a run came to, whether it finished or was stopped, and its report.

use super::metrics::Record;
use super::stages::Plan;
use crate::config::Config;
use crate::evaluate::Evaluation;

/// A run after its last step, or after the one it was stopped at.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The configuration it was begun with.
    pub config: Config,
    /// Its stages.
    pub plan: Plan,
    /// Steps made, earlier sessions included.
    pub steps: u64,
    /// Everything in `metrics.jsonl`.
    pub records: Vec<Record>,
    /// The evaluation before the first step.
    pub initial: Evaluation,
    /// The evaluation after the last step; `None` for a run that was stopped.
    pub evaluation: Option<Evaluation>,
    /// Text that the finished model wrote.
    pub sample: String,
    /// Tokens of the training text.
    pub training_tokens: u64,
    /// Sentences about how the run was made: the device, where it was resumed.
    pub notes: Vec<String>,
}

impl Outcome {
    /// Whether all steps were made.
    pub fn is_finished(&self) -> bool {
        self.steps == self.plan.steps()
    }

    /// Seconds of training, earlier sessions included.
    pub fn seconds(&self) -> f64 {
        self.records.last().map_or(0.0, |record| record.seconds)
    }

    /// How often the training text was read.
    pub fn epochs(&self) -> f64 {
        self.plan.totals(self.steps).tokens as f64 / self.training_tokens as f64
    }

    /// What `report.html` shows; `title` is its heading.
    ///
    /// # Errors
    /// A configuration that TOML cannot hold.
    #[cfg(feature = "program")]
    pub fn report(&self, title: String) -> crate::Result<crate::report::RunReport> {
        Ok(crate::report::RunReport {
            title,
            config_toml: self.config.to_toml()?,
            parameters: self.config.model.parameters() as u64,
            records: self.records.clone(),
            initial: Some(self.initial.into()),
            evaluation: self.evaluation.map(Into::into),
            stages: self.plan.stages.clone(),
            sample: self.sample.clone(),
            notes: self.notes.clone(),
        })
    }
}

#[cfg(feature = "program")]
impl From<Evaluation> for crate::report::Evaluation {
    fn from(evaluation: Evaluation) -> Self {
        crate::report::Evaluation { loss: evaluation.loss, bits_per_byte: evaluation.bits_per_byte }
    }
}
