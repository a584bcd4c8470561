//! `metrics.jsonl`: one JSON object a line, one line a record, in the order of the steps (which count from 1).
//!
//! Keys: `step, stage, tokens, positions, loss, loss_above_floor` (patch stage only)`, val_loss, lr, grad_norm,
//! tokens_per_second, model_flops, seconds`. A record exists once its newline does: a last line without one is a
//! write that was cut short, and is ignored by [`read`] and removed by [`MetricsWriter::open_at`].

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::atomic_file;
use crate::error::{Error, Result};
use crate::train::stages::StageName;

/// One line of `metrics.jsonl`. Losses are in nats per predicted token; counters run over both stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Optimizer step this record describes, counted from 1 over both stages.
    pub step: u64,
    /// The stage the step belongs to.
    pub stage: StageName,
    /// Tokens read since the start of the run.
    pub tokens: u64,
    /// Positions trained on since the start of the run; a patch is one position.
    pub positions: u64,
    /// Training loss of the step. A patch loss and a token loss are not comparable.
    pub loss: f64,
    /// Patch loss minus its floor, the entropy of the bag of tokens in each target patch; only during patches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_above_floor: Option<f64>,
    /// Token-level loss on the fixed validation windows; `null` where the step was not followed by an evaluation.
    #[serde(deserialize_with = "present")]
    pub val_loss: Option<f64>,
    /// Learning rate of the step.
    pub lr: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens read per second of training, evaluation and checkpoints not counted.
    pub tokens_per_second: f64,
    /// Model FLOPs spent since the start of the run.
    pub model_flops: f64,
    /// Seconds of training steps since the start of the run, sessions before a resume included; evaluation and
    /// checkpoints not counted.
    pub seconds: f64,
}

/// Reads an `Option` whose key must be there; without this serde takes a missing key for `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Option::deserialize(deserializer)
}

impl Record {
    /// The record as one line of JSON without its newline.
    ///
    /// # Errors
    /// A number that is NaN or infinite, which JSON cannot hold: the message names the step and the key.
    pub fn to_line(&self) -> Result<String> {
        let numbers = [
            ("loss", Some(self.loss)),
            ("loss_above_floor", self.loss_above_floor),
            ("val_loss", self.val_loss),
            ("lr", Some(self.lr)),
            ("grad_norm", Some(self.grad_norm)),
            ("tokens_per_second", Some(self.tokens_per_second)),
            ("model_flops", Some(self.model_flops)),
            ("seconds", Some(self.seconds)),
        ];
        for (key, value) in numbers {
            if let Some(value) = value
                && !value.is_finite()
            {
                return Err(Error::Metrics(format!(
                    "the metrics of step {} hold `{key}` = {value}, and JSON has no such number: expected a finite \
                     value. The record was not written; the run diverged at or before this step.",
                    self.step
                )));
            }
        }
        serde_json::to_string(self)
            .map_err(|error| Error::Metrics(format!("cannot encode the metrics of step {}: {error}", self.step)))
    }
}

/// Appends records to a `metrics.jsonl`; every record is in the hands of the system before [`write`](Self::write)
/// returns.
#[derive(Debug)]
pub struct MetricsWriter {
    file: File,
    path: PathBuf,
    last_step: Option<u64>,
}

impl MetricsWriter {
    /// Starts a new file.
    ///
    /// # Errors
    /// A file of that name that already exists (it belongs to another run and is left as it is), or a folder that
    /// cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).create_new(true).open(path).map_err(Error::io("create", path))?;
        Ok(Self { file, path: path.to_owned(), last_step: None })
    }

    /// Opens the file of a run that continues after `step`: records of later steps, and a last line that was cut
    /// short, are removed; what is kept stays as it is, byte for byte. With `step` 0 nothing is kept. A missing file
    /// is created. The cut is atomic: at any moment the file is either the old one or the new one.
    ///
    /// # Errors
    /// A whole line that is no record (named), or a file that cannot be read or replaced.
    pub fn open_at(path: &Path, step: u64) -> Result<Self> {
        if !path.exists() {
            return Self::create(path);
        }
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let mut kept = 0;
        let mut last_step = None;
        for (line, record) in records(path, &bytes) {
            // Lines after the last one that stays may be damaged; they go unread.
            if last_step.unwrap_or(0) == step {
                break;
            }
            let record = record?;
            if record.step > step {
                break;
            }
            kept += line.len();
            last_step = Some(record.step);
        }
        if kept < bytes.len() {
            atomic_file::replace(path, &bytes[..kept])?;
        }
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io("open", path))?;
        Ok(Self { file, path: path.to_owned(), last_step })
    }

    /// Step of the last record in the file, if there is one.
    pub fn last_step(&self) -> Option<u64> {
        self.last_step
    }

    /// Appends one record and flushes it.
    ///
    /// # Errors
    /// A number that is not finite, a step that does not come after the last one written, or a full disk.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let after = self.last_step.unwrap_or(0);
        if record.step <= after {
            return Err(Error::Metrics(format!(
                "`{}` ends with step {after}; expected a later step next, got step {}",
                self.path.display(),
                record.step
            )));
        }
        let mut line = record.to_line()?;
        line.push('\n');
        let action = "append to";
        self.file.write_all(line.as_bytes()).map_err(Error::io(action, &self.path))?;
        self.file.flush().map_err(Error::io(action, &self.path))?;
        self.last_step = Some(record.step);
        Ok(())
    }

    /// Waits until everything written is on the disk; called before a checkpoint that relies on it.
    ///
    /// # Errors
    /// Whatever the system reports.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("write", &self.path))
    }
}

/// All records of a file, in order.
///
/// # Errors
/// A file that cannot be read, a line that is not a record with exactly the keys of [`Record`], or steps that do not
/// increase; the message names the line.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    records(path, &bytes).map(|(_, record)| record).collect()
}

/// Each whole line, newline included, with the record in it; steps are checked to increase.
fn records<'a>(path: &'a Path, bytes: &'a [u8]) -> impl Iterator<Item = (&'a [u8], Result<Record>)> + 'a {
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
    let lines = bytes[..whole].split_inclusive(|&byte| byte == b'\n');
    let mut last = 0;
    lines.enumerate().map(move |(index, line)| {
        let record = serde_json::from_slice::<Record>(line)
            .map_err(|error| not_a_record(path, index + 1, error))
            .and_then(|record| {
                if record.step <= last {
                    let why = format!("step {} follows step {last}", record.step);
                    return Err(not_a_record(path, index + 1, why));
                }
                last = record.step;
                Ok(record)
            });
        (line, record)
    })
}

fn not_a_record(path: &Path, line: usize, why: impl std::fmt::Display) -> Error {
    Error::Metrics(format!(
        "line {line} of `{}` is not a metrics record: {why}. Expected one JSON object a line, in the order of the \
         steps; remove the line or point to the metrics.jsonl of a run.",
        path.display()
    ))
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
