//! A timeline of profiled steps in the format of Chrome's trace viewer (about:tracing, Perfetto): one complete event (`"ph": "X"`)
//! for every step and, inside it, every primitive; times in microseconds.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use patchgpt_tensor::profile::Call;
use serde_json::{Value, json};

use super::Measurement;
use crate::{Error, Result};

/// A stretch of time, counted from when the profiler was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start: Duration,
    pub(super) elapsed: Duration,
}

/// Profiled steps and their calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Timeline {
    pub(super) steps: Vec<Span>,
    pub(super) calls: Vec<Call>,
}

impl Timeline {
    /// Mean time of a step, in seconds.
    pub(super) fn step_seconds(&self) -> f64 {
        let total: Duration = self.steps.iter().map(|step| step.elapsed).sum();
        total.as_secs_f64() / self.steps.len().max(1) as f64
    }

    /// The events, those of the steps first.
    fn events(&self) -> impl Iterator<Item = Value> {
        let begun = self.steps.first().map_or(Duration::ZERO, |step| step.start);
        let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
        let event = move |name: &str, category: &str, start: Duration, elapsed: Duration, args: Value| {
            let ts = micros(start.saturating_sub(begun));
            json!({"name": name, "cat": category, "ph": "X", "pid": 1, "tid": 1, "ts": ts, "dur": micros(elapsed), "args": args})
        };
        let steps = self
            .steps
            .iter()
            .enumerate()
            .map(move |(index, step)| event("step", "step", step.start, step.elapsed, json!({"step": index + 1})));
        let calls = self.calls.iter().map(move |call| {
            let args = json!({"shapes": call.shapes, "flops": call.flops, "bytes": call.bytes});
            event(call.op, "op", call.start, call.elapsed, args)
        });
        steps.chain(calls)
    }
}

impl Measurement {
    /// Writes the profiled steps as a timeline.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write_trace(&self, path: &Path) -> Result<()> {
        let mut file = BufWriter::new(File::create(path).map_err(Error::io("write", path))?);
        let name = format!("{} on {}", self.preset.as_deref().unwrap_or("model"), self.device);
        let named = json!({"name": "process_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": name}});
        let written =
            std::iter::once(named).chain(self.timeline.events()).enumerate().try_for_each(|(index, event)| {
                let before = if index == 0 { "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n" } else { ",\n" };
                write!(file, "{before}{event}")
            });
        written.and_then(|()| file.write_all(b"\n]}\n")).and_then(|()| file.flush()).map_err(Error::io("write", path))
    }
}
