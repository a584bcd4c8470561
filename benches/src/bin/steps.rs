//! Training steps on request, for the comparison with other libraries (`benches/peers/`): `steps model.preset=bench-s device.dtype=f32`,
//! or any other settings.
//!
//! Speaks lines: prints one JSON object when ready, then for every line that it reads one more: `token` and `patch` make a step of that
//! regime on one model and answer `{"seconds": .., "loss": ..}`, `memory` answers `{"peak_memory_bytes": ..}`: of a card what its tensors held at most, else the
//! physical memory of this process. Ends with its input.

use patchgpt_benches::worker;
use patchgpt_models::benchmark::{Feed, Session, peak_memory};
use patchgpt_models::config::Device as DeviceChoice;
use patchgpt_models::train::open_device;
use patchgpt_models::train::stages::StageName;
use patchgpt_models::{Error, Result};
use serde_json::json;

fn main() {
    worker::main(serve);
}

fn serve(arguments: Vec<String>) -> Result<()> {
    let config = worker::configuration(&arguments)?;
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
            "memory" => {
                let tensors = device.backend().memory_peak().map(|bytes| bytes as u64);
                let on_card = config.device.device == DeviceChoice::Cuda;
                return Ok(json!({ "peak_memory_bytes": if on_card { tensors } else { peak_memory() } }));
            }
            other => return Err(Error::Config(format!("`token`, `patch` or `memory` expected, got `{other}`"))),
        };
        let timed = session.step(feed)?;
        Ok(json!({"seconds": timed.seconds, "loss": timed.step.loss}))
    })
}
