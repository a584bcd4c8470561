//! Single ops on request, for the comparison with other libraries (`benches/peers/run_ops.py`): `ops device.dtype=f32 device.threads=2`, or any
//! other settings of the device, such as `device.device=cuda device.kernel=attention=sm80`.
//!
//! Speaks lines, as `steps` does: prints one JSON object with the names of the ops when ready, then for every line that it reads one more. A line is a name and
//! what is asked of it, separated by a tab: `forward` and `both` (forward and backward) run it and answer `{"seconds": ..}`, of one
//! call; `work forward` and `work both` answer what it is bound by, `{"flops": .., "bytes": ..}`; `check` answers whether the op still computes the bits
//! that it computed before it was timed, `{"same": ..}`. The inputs of an op are made when it is first asked for, and those of the one before are freed. A run is
//! as many calls as take a while, so that it is no matter how threads wake up; on a card several calls between two waits, each on inputs of its own, so that none
//! finds its data in the second-level cache.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use patchgpt_benches::{Run, adamw, calls, forward, forward_backward, output, worker};
use patchgpt_models::config::Device as DeviceChoice;
use patchgpt_models::train::{dtype, open_device};
use patchgpt_models::{Error, Result};
use patchgpt_tensor::{DType, Device};
use patchgpt_tests::cases::{self, Case, Make};
use serde_json::{Value, json};

/// Bytes of inputs that a card has to pass before it sees the same ones again: more than any second-level cache holds.
const ROTATED_BYTES: f64 = 256e6;
/// Most sets of inputs.
const MOST_SETS: usize = 16;
/// Calls of a run on a card.
const CALLS: usize = 16;
/// A run on the CPU makes calls until this has passed.
const WHILE: Duration = Duration::from_millis(20);
/// Parameters that AdamW is timed on.
const PARAMETERS: usize = 30_000_000;

fn main() {
    worker::main(serve);
}

fn serve(arguments: Vec<String>) -> Result<()> {
    let config = worker::configuration(&arguments)?.device;
    let device = open_device(&config)?;
    let dtype = dtype(&config);
    // Its ceilings are measured only where it is a card; the emulated device is asked for the sizes of a processor.
    let on_card = config.device == DeviceChoice::Cuda;
    let limits = device.backend().limits(dtype);
    let adamw_name = format!("AdamW {PARAMETERS}");
    let ops = cases::compared(on_card);
    let names: Vec<&String> = ops.iter().map(|(name, _)| name).chain([&adamw_name]).collect();
    worker::say(&json!({
        "name": "patchgpt",
        "version": env!("CARGO_PKG_VERSION"),
        "device": device.to_string(),
        "ops": names,
        "flops_per_second": limits.map(|limits| limits.flops_per_second),
        "bytes_per_second": limits.map(|limits| limits.bytes_per_second),
    }))?;
    let mut ready = Ready { dtype, device, on_card, op: None };
    let makes: HashMap<&String, &Make> = ops.iter().map(|(name, make)| (name, make)).collect();
    worker::answer_lines(|line| {
        let expected = || Error::Config(format!("a name of {names:?}, a tab and what to do expected, got `{line}`"));
        let (name, what) = line.split_once('\t').ok_or_else(expected)?;
        if name != adamw_name && !makes.contains_key(&name.to_owned()) {
            return Err(expected());
        }
        let make = || makes.get(&name.to_owned()).map(|make| make());
        ready.answer(name, make, what)?.ok_or_else(expected)
    })
}

/// The op that was asked for last.
struct Ready {
    dtype: DType,
    device: Device,
    on_card: bool,
    op: Option<Op>,
}

struct Op {
    name: String,
    /// `None` for AdamW.
    case: Option<Rc<Case>>,
    /// What it computed before it was timed.
    output: Vec<f64>,
    /// `forward` or `both`, and a run for each set of inputs.
    runs: Option<(String, Vec<Run>)>,
}

impl Ready {
    /// The answer to a line; `None` if it asks for something else.
    fn answer(&mut self, name: &str, make: impl FnOnce() -> Option<Case>, what: &str) -> Result<Option<Value>> {
        let (dtype, device) = (self.dtype, &self.device);
        if self.op.as_ref().is_none_or(|op| op.name != name) {
            self.op = None;
            let case = make().map(Rc::new);
            let output = case.as_ref().map_or(Ok(Vec::new()), |case| output(case, dtype, device))?;
            self.op = Some(Op { name: name.to_owned(), case, output, runs: None });
        }
        let Some(op) = &mut self.op else { return Ok(None) };
        let case = op.case.clone();
        let build = |pass: &str, device: &Device| match (&case, pass) {
            (Some(case), "forward") => forward(case, dtype, device).map(Some),
            (Some(case), "both") => forward_backward(case, dtype, device).map(Some),
            // An optimizer has one pass.
            (None, "forward" | "both") => adamw(PARAMETERS, device).map(Some),
            _ => Ok(None),
        };
        if what == "check" {
            let same =
                case.as_ref().map_or(Ok(true), |case| Ok::<_, Error>(output(case, dtype, device)? == op.output))?;
            return Ok(Some(json!({ "same": same })));
        }
        if let Some(pass) = what.strip_prefix("work ") {
            let built = |device: &Device| Ok(build(pass, device)?.unwrap_or_else(|| Box::new(|| Ok(()))));
            let calls = calls(device, &built)?;
            let sum = |of: fn(&patchgpt_tensor::profile::Call) -> f64| calls.iter().map(of).sum::<f64>();
            return Ok(Some(json!({"flops": sum(|call| call.flops), "bytes": sum(|call| call.bytes)})));
        }
        if op.runs.as_ref().is_none_or(|(pass, _)| pass != what) {
            op.runs = None;
            let Some(first) = build(what, device)? else { return Ok(None) };
            let mut runs = vec![first];
            let bytes = op.case.as_ref().map_or(f64::INFINITY, |case| case.traffic * dtype.size() as f64);
            let sets = if self.on_card { (ROTATED_BYTES / bytes) as usize } else { 0 };
            for _ in 0..sets.min(MOST_SETS - 1) {
                runs.extend(build(what, device)?);
            }
            op.runs = Some((what.to_owned(), runs));
        }
        let Some((_, runs)) = &op.runs else { return Ok(None) };
        device.synchronize()?;
        let (mut calls, begun) = (0, Instant::now());
        while if self.on_card { calls < CALLS } else { begun.elapsed() < WHILE } {
            runs[calls % runs.len()]()?;
            calls += 1;
        }
        device.synchronize()?;
        Ok(Some(json!({"seconds": begun.elapsed().as_secs_f64() / calls as f64})))
    }
}
