//! Single ops on request, for the comparison with other libraries (`benches/peers/run_ops.py`): `ops DTYPE THREADS`.
//!
//! Speaks lines, as `steps` does: prints one JSON object with the names of the ops when ready, then for every line that it reads one more. A line is a name and
//! `forward` or `both` (forward and backward), separated by a tab; the answer is `{"seconds": ..}`. The inputs of an op are made when it
//! is first asked for, and those of the one before are freed.

use std::rc::Rc;
use std::time::Instant;

use patchgpt_benches::{Run, forward, forward_backward, worker};
use patchgpt_models::{Error, Result};
use patchgpt_tensor::{DType, Device};
use patchgpt_tests::cases;
use serde_json::json;

fn main() {
    worker::main(serve);
}

fn serve(arguments: Vec<String>) -> Result<()> {
    let [dtype, threads] = &arguments[..] else {
        return Err(Error::Config(format!("DTYPE and THREADS expected, got {arguments:?}")));
    };
    let dtype: DType = dtype.parse().map_err(Error::Config)?;
    let threads =
        threads.parse().map_err(|_| Error::Config(format!("a number of threads expected, got `{threads}`")))?;
    let device = Device::cpu_with_threads(threads)?;
    let ops = cases::compared();
    let names: Vec<&str> = ops.iter().map(|(name, _)| *name).collect();
    worker::say(
        &json!({"name": "patchgpt", "version": env!("CARGO_PKG_VERSION"), "device": device.to_string(), "ops": names}),
    )?;
    let mut ready: Option<(String, Run)> = None;
    worker::answer_lines(|line| {
        if ready.as_ref().is_none_or(|(asked, _)| asked != line) {
            drop(ready.take());
            let expected =
                || Error::Config(format!("a name of {names:?}, a tab, `forward` or `both` expected, got `{line}`"));
            let (name, pass) = line.split_once('\t').ok_or_else(expected)?;
            let case = Rc::new(ops.iter().find(|op| op.0 == name).ok_or_else(expected)?.1());
            let run = match pass {
                "forward" => forward(&case, dtype, &device)?,
                "both" => forward_backward(&case, dtype, &device)?,
                _ => return Err(expected()),
            };
            ready = Some((line.to_owned(), run));
        }
        let begun = Instant::now();
        if let Some((_, run)) = &ready {
            run()?;
        }
        Ok(json!({"seconds": begun.elapsed().as_secs_f64()}))
    })
}
