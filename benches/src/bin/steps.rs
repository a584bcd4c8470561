//! Training steps on request, for the comparison with other libraries (`benches/peers/`): `steps PRESET DTYPE THREADS`.
//!
//! Speaks lines: prints one JSON object when ready, then for every line that it reads one more: `token` and `patch` make a step of that
//! regime on one model and answer `{"seconds": .., "loss": ..}`, `memory` answers `{"peak_memory_bytes": ..}`. Ends with its input.

use patchgpt_benches::worker;
use patchgpt_models::benchmark::{Feed, Session, peak_memory};
use patchgpt_models::config::Config;
use patchgpt_models::train::open_device;
use patchgpt_models::train::stages::StageName;
use patchgpt_models::{Error, Result};
use serde_json::json;

fn main() {
    worker::main(serve);
}

fn serve(arguments: Vec<String>) -> Result<()> {
    let [preset, dtype, threads] = &arguments[..] else {
        return Err(Error::Config(format!("PRESET, DTYPE and THREADS expected, got {arguments:?}")));
    };
    let mut config = Config::preset(preset)?;
    config.device.dtype = dtype.parse()?;
    let count = |_| Error::Config(format!("a number of threads expected, got `{threads}`"));
    config.device.threads = Some(threads.parse().map_err(count)?);
    let device = open_device(&config.device)?;
    let mut session = Session::new(&config, &device)?;
    let (mut token, mut patch) = (Feed::new(&config, StageName::Token)?, Feed::new(&config, StageName::Patch)?);
    worker::say(&json!({
        "name": "patchgpt",
        "version": env!("CARGO_PKG_VERSION"),
        "device": device.to_string(),
        "parameters": config.model.parameters(),
        "tokens": {"token": token.stage().tokens_per_step, "patch": patch.stage().tokens_per_step},
        "model_flops": token.stage().model_flops_per_step,
    }))?;
    worker::answer_lines(|line| {
        let feed = match line.trim() {
            "token" => &mut token,
            "patch" => &mut patch,
            "memory" => return Ok(json!({ "peak_memory_bytes": peak_memory() })),
            other => return Err(Error::Config(format!("`token`, `patch` or `memory` expected, got `{other}`"))),
        };
        let timed = session.step(feed)?;
        Ok(json!({"seconds": timed.seconds, "loss": timed.step.loss}))
    })
}
