//! `patchgpt plan`: the memory of a training step, and passes that fit a device, before anything is trained.

use std::fmt::Write;
use std::process::ExitCode;

use comfy_table::{CellAlignment, Table, presets};
use patchgpt_models::benchmark::Machine;
use patchgpt_models::config::{Config, Device, Recompute};
use patchgpt_models::planner::{Footprint, HEADROOM, choices, footprint, parse_memory, proposal};
use patchgpt_models::train::stages::Stage;
use patchgpt_models::{Error, Result};
use patchgpt_tensor::in_words;
use serde_json::json;

use crate::output::print_line;
use crate::step::StepChoice;

/// The memory of a training step, and passes that fit a device.
///
/// The step runs on a device without elements, which computes nothing and counts what every tensor holds, so that any size can be planned
/// anywhere. Neither the device nor any data is needed.
#[derive(clap::Args, Debug)]
#[command(args_override_self = true)]
pub(crate) struct Args {
    #[command(flatten)]
    step: StepChoice,

    /// Memory of the device, such as 80G or 79.6GiB; without it that of this machine's CPU or first card
    #[arg(long, value_name = "SIZE", help_heading = "Machine")]
    device_memory: Option<String>,

    /// Print one JSON object instead of a table, for scripts
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Bytes of memory of the device that is planned for.
fn memory(asked: Option<&String>, device: Device) -> Result<usize> {
    if let Some(text) = asked {
        return parse_memory(text);
    }
    let needed = |reason: String| Error::Config(format!("--device-memory is needed: {reason}"));
    match device {
        Device::Cuda => {
            let devices = patchgpt_cuda::probe().devices?;
            devices.first().map(|card| card.memory).ok_or_else(|| needed("this machine has no card".into()))
        }
        Device::Cpu | Device::CudaEmulated => Machine::here()
            .memory_bytes
            .map(|bytes| bytes as usize)
            .ok_or_else(|| needed("this system does not tell how much memory it has".into())),
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (config, name) = (args.step.config(&[])?, args.step.stage());
    let stage = Stage::alone(&config, name, 1)?;
    let memory = memory(args.device_memory.as_ref(), config.device.device)?;
    let (asked, choices) = (footprint(&config, name, memory)?, choices(&config, name, memory)?);
    let proposed = proposal(&choices, &stage);
    if args.json {
        let object = json!({
            "parameters": config.model.parameters(),
            "sequences": stage.sequences,
            "positions": stage.positions,
            "device_memory": memory,
            "headroom": HEADROOM,
            "asked": asked,
            "choices": choices,
            "proposal": proposed,
        });
        print_line(&object.to_string())?;
    } else {
        print_line(&text(&config, &stage, memory, &asked, &choices, proposed))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(
    config: &Config,
    stage: &Stage,
    memory: usize,
    asked: &Footprint,
    choices: &[Footprint],
    proposed: Option<&Footprint>,
) -> String {
    let mut out = format!(
        "{}: {:.1}M parameters, {} stage (K = {}), {}, on {}; {} x {} positions a step\n\n",
        config.model.preset.as_deref().unwrap_or("model"),
        config.model.parameters() as f64 / 1e6,
        stage.name,
        stage.regime.input_patch.max(stage.regime.target_patch),
        config.device.dtype,
        config.device.device,
        stage.sequences,
        stage.positions
    );
    let mut table = table(["what a step holds", "memory"]);
    let logits = format!("  of which logits ({} of {} rows)", asked.logit_rows, stage.positions * asked.micro_batch);
    for (name, bytes) in [
        ("weights", asked.weights),
        ("gradients", asked.gradients),
        ("moments", asked.moments),
        ("activations and what ops work with", asked.activations),
        (logits.as_str(), asked.logits),
        ("at the peak", asked.peak),
        ("the search for products' algorithms, beside that", asked.search),
        ("an evaluation between steps, beside that", asked.evaluation),
    ] {
        if bytes == 0 {
            continue;
        }
        table.add_row([name.to_owned(), in_words(bytes)]);
    }
    let fits = if asked.needed() as f64 <= memory as f64 * (1.0 - HEADROOM) { "fits" } else { "does not fit" };
    let passes = stage.sequences.div_ceil(asked.micro_batch);
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "{table}\n\n{passes} {} of {} sequences, {} recomputed: {fits} into {} ({:.0}% of it are left to the driver and to gaps).\n",
        if passes == 1 { "pass" } else { "passes" },
        asked.micro_batch,
        recomputed(asked.recompute),
        in_words(memory),
        100.0 * HEADROOM
    );
    let Some(proposed) = proposed else {
        let _ = write!(
            out,
            "No pass fits, not of one sequence with recomputation: take a smaller model, a shorter --seq-len, --dtype bf16 or a larger device."
        );
        return out;
    };
    let mut table = self::table(["recomputed", "sequences a pass", "passes a step", "at the peak"]);
    for choice in choices {
        table.add_row([
            recomputed(choice.recompute).to_owned(),
            choice.micro_batch.to_string(),
            stage.sequences.div_ceil(choice.micro_batch).to_string(),
            in_words(choice.needed()),
        ]);
    }
    let _ = write!(
        out,
        "\nThe largest passes that fit:\n{table}\n\nproposed: --set train.micro_batch={} --set train.recompute={}",
        proposed.micro_batch, proposed.recompute
    );
    out
}

/// What is computed again, in words.
fn recomputed(level: Recompute) -> &'static str {
    match level {
        Recompute::Nothing => "nothing",
        Recompute::Cheap => "norms and activation functions",
        Recompute::Blocks => "blocks (a third more arithmetic)",
    }
}

/// A table whose columns after the first are numbers.
fn table<const N: usize>(head: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(head);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
