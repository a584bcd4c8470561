//! Single ops on request, for the comparison with other libraries (`benches/peers/run_ops.py`): `ops DTYPE THREADS`.
//!
//! Speaks lines, as `steps` does: prints one JSON object with the names of the ops when ready, then for every line that it reads one more. A line is a name and
//! `forward` or `both` (forward and backward), separated by a tab; the answer is `{"seconds": ..}`. The inputs of an op are made when it
//! is first asked for, and those of the one before are freed.

use std::io::{BufRead, Write};
use std::rc::Rc;
use std::time::Instant;

use patchgpt_benches::{Run, forward, forward_backward};
use patchgpt_models::{Error, Result};
use patchgpt_tensor::{DType, Device};
use patchgpt_tests::cases;
use serde_json::{Value, json};

fn main() {
    if let Err(error) = serve() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn say(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}").and_then(|()| out.flush()).map_err(Error::io("write", "standard output"))
}

fn serve() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dtype, threads] = &arguments[..] else {
        return Err(Error::Config(format!("DTYPE and THREADS expected, got {arguments:?}")));
    };
    let dtype: DType = dtype.parse().map_err(Error::Config)?;
    let threads =
        threads.parse().map_err(|_| Error::Config(format!("a number of threads expected, got `{threads}`")))?;
    let device = Device::cpu_with_threads(threads)?;
    let ops = cases::compared();
    let names: Vec<&str> = ops.iter().map(|(name, _)| *name).collect();
    say(
        &json!({"name": "patchgpt", "version": env!("CARGO_PKG_VERSION"), "device": device.to_string(), "ops": names}),
    )?;
    let mut ready: Option<(String, Run)> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(Error::io("read", "standard input"))?;
        if ready.as_ref().is_none_or(|(asked, _)| *asked != line) {
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
            ready = Some((line, run));
        }
        let Some((_, run)) = &ready else { continue };
        let begun = Instant::now();
        run()?;
        say(&json!({"seconds": begun.elapsed().as_secs_f64()}))?;
    }
    Ok(())
}
