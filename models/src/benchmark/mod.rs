//! Measuring training: throughput of whole steps, then, in separate steps, where their time goes.
//!
//! Throughput is taken without a profiler: steps after a warm-up, each timed from asking for its batch to having its loss, so
//! that loading, clipping and AdamW are in it; the median counts. Peak memory is read next, then the machine's ceilings are measured
//! ([`patchgpt_tensor::Limits`]), then a fresh model runs a few steps on a profiled device. Model FLOPs are those of [`crate::flops`].

mod machine;
mod session;
mod trace;

use std::time::Duration;

use patchgpt_tensor::profile::{Call, Profiler};
use patchgpt_tensor::{Device, Limits};
use serde::Serialize;

pub use machine::{Machine, PEAK_MEMORY, peak_memory};
pub use session::{Feed, MOST_STEPS, Session, TimedStep};

use crate::config::Config;
use crate::train::stages::StageName;
use crate::train::{dtype, open_device};
use crate::{Error, Result};

/// Steps before those that are measured: the first ones fill the pool of memory, and the second is recorded where the device can.
pub const WARM_UP_STEPS: usize = 2;

/// Steps that are profiled, at most.
const PROFILED_STEPS: usize = 3;

/// All calls of one primitive, per step.
#[derive(Clone, Debug, Serialize)]
pub struct Op {
    /// Name in the contract of the devices.
    pub name: &'static str,
    /// Calls of a step.
    pub calls: f64,
    /// Seconds of a step.
    pub seconds: f64,
    /// Operations of a step.
    pub flops: f64,
    /// Least bytes moved in a step, by the calls one by one.
    pub bytes: f64,
    /// Least seconds that the measured ceilings allow for the calls one by one.
    pub floor_seconds: Option<f64>,
}

/// Everything that was measured; serialised, what `patchgpt bench --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// Preset that the model started from.
    pub preset: Option<String>,
    /// Level of the steps.
    pub regime: StageName,
    /// Tokens that a position reads.
    pub patch_size: usize,
    /// Type of weights and activations.
    pub dtype: String,
    /// What computed.
    pub device: String,
    /// Threads of the CPU.
    pub threads: usize,
    /// Trained numbers.
    pub parameters: usize,
    /// Sequences of a step.
    pub sequences: usize,
    /// Positions of a sequence.
    pub positions: usize,
    /// Tokens that a step reads.
    pub tokens_per_step: u64,
    /// Steps measured.
    pub steps: usize,
    /// Steps before them.
    pub warm_up_steps: usize,
    /// `tokens_per_step` over `step_seconds`.
    pub tokens_per_second: f64,
    /// Median of the steps.
    pub step_seconds: f64,
    /// Fastest step.
    pub step_seconds_min: f64,
    /// Slowest step.
    pub step_seconds_max: f64,
    /// Median of what a step waited for its batch; part of its seconds.
    pub loading_seconds: f64,
    /// Median of what a step kept the host, until all of its work had been given to the device; on the CPU, which is the device, nearly all of it.
    pub host_seconds: f64,
    /// Kernels, copies and fills of the graph that a step replays; absent where steps are not recorded.
    pub graph_operations: Option<usize>,
    /// Cores that other processes kept busy during the measured steps, on average; a figure taken beside others' work says little.
    pub others_cores: Option<f64>,
    /// Loss of the last step.
    pub loss: f64,
    /// Arithmetic that the model demands of a step.
    pub model_flops_per_step: f64,
    /// `model_flops_per_step` over `step_seconds`.
    pub model_flops_per_second: f64,
    /// Multiply-adds per second that the device was seen to do, two operations each.
    pub peak_flops_per_second: Option<f64>,
    /// `model_flops_per_second` over `peak_flops_per_second`.
    pub share_of_peak: Option<f64>,
    /// Bytes per second that a large copy reads and writes.
    pub copy_bytes_per_second: Option<f64>,
    /// Peak physical memory of the process before anything was profiled.
    pub peak_memory_bytes: Option<u64>,
    /// What `peak_memory_bytes` is.
    pub peak_memory: &'static str,
    /// The most bytes that live tensors held in these steps.
    pub peak_tensor_bytes: Option<usize>,
    /// Steps profiled.
    pub profiled_steps: usize,
    /// Mean of the profiled steps.
    pub profiled_step_seconds: f64,
    /// Of these, seconds outside of every primitive: the graph, batches, the program.
    pub outside_ops_seconds: f64,
    /// Where the profiled time goes, the longest first.
    pub ops: Vec<Op>,
    /// Where it was measured.
    pub machine: Machine,
    /// The profiled calls and steps, for the timeline.
    #[serde(skip)]
    timeline: trace::Timeline,
}

/// Measures `steps` steps of one stage of `config`. `tell` is told in a sentence what is being done.
///
/// # Errors
/// No steps or too many; settings that contradict each other; a device that cannot be opened or that fails.
pub fn benchmark(config: &Config, name: StageName, steps: usize, mut tell: impl FnMut(&str)) -> Result<Measurement> {
    let most = MOST_STEPS as usize - WARM_UP_STEPS;
    if steps == 0 || steps > most {
        return Err(Error::Config(format!("{steps} steps cannot be measured: give at least 1 and at most {most}")));
    }
    let device = open_device(&config.device)?;
    tell(&format!("{WARM_UP_STEPS} steps of warm-up and {steps} measured, on {device}"));
    let (timed, others_cores, stage, graph_operations) = {
        let (mut feed, mut session) = (Feed::new(config, name)?, Session::new(config, &device)?);
        for _ in 0..WARM_UP_STEPS {
            session.step(&mut feed)?;
        }
        let busy = machine::Busy::now();
        let timed = (0..steps).map(|_| session.step(&mut feed)).collect::<Result<Vec<_>>>()?;
        (timed, busy.and_then(machine::Busy::others_since), feed.stage().clone(), feed.operations())
    };
    let (peak_memory_bytes, peak_tensor_bytes) = (peak_memory(), device.backend().memory_peak());
    tell("the ceilings of this machine");
    let limits = device.backend().limits(dtype(&config.device));
    let profiled_steps = steps.min(PROFILED_STEPS);
    tell(&format!("{profiled_steps} steps with a profiler"));
    let timeline = profile(config, name, profiled_steps, &device)?;

    let seconds = sorted(timed.iter().map(|step| step.seconds));
    let step_seconds = median(&seconds);
    let profiled_step_seconds = timeline.step_seconds();
    let ops = by_op(&timeline.calls, profiled_steps, limits);
    let model_flops_per_second = stage.model_flops_per_step / step_seconds;
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    Ok(Measurement {
        preset: config.model.preset.clone(),
        regime: name,
        patch_size: stage.regime.input_patch,
        dtype: config.device.dtype.to_string(),
        device: device.to_string(),
        threads: config.device.threads.unwrap_or(threads),
        parameters: config.model.parameters(),
        sequences: stage.sequences,
        positions: stage.positions,
        tokens_per_step: stage.tokens_per_step,
        steps,
        warm_up_steps: WARM_UP_STEPS,
        tokens_per_second: stage.tokens_per_step as f64 / step_seconds,
        step_seconds,
        step_seconds_min: seconds[0],
        step_seconds_max: seconds[seconds.len() - 1],
        loading_seconds: median(&sorted(timed.iter().map(|step| step.waited))),
        host_seconds: median(&sorted(timed.iter().map(|step| step.host))),
        graph_operations,
        others_cores,
        loss: timed[timed.len() - 1].step.loss,
        model_flops_per_step: stage.model_flops_per_step,
        model_flops_per_second,
        peak_flops_per_second: limits.map(|limits| limits.flops_per_second),
        share_of_peak: limits.map(|limits| model_flops_per_second / limits.flops_per_second),
        copy_bytes_per_second: limits.map(|limits| limits.bytes_per_second),
        peak_memory_bytes,
        peak_memory: PEAK_MEMORY,
        peak_tensor_bytes,
        profiled_steps,
        profiled_step_seconds,
        outside_ops_seconds: profiled_step_seconds - ops.iter().map(|op| op.seconds).sum::<f64>(),
        ops,
        machine: Machine::here(),
        timeline,
    })
}

/// Runs one step to warm up and `steps` more on a profiled device.
fn profile(config: &Config, name: StageName, steps: usize, device: &Device) -> Result<trace::Timeline> {
    let profiler = Profiler::around(device);
    let (mut feed, mut session) = (Feed::new(config, name)?, Session::new(config, &profiler.device())?);
    session.step(&mut feed)?;
    profiler.take();
    let mut timeline = trace::Timeline::default();
    for _ in 0..steps {
        let start = profiler.clock();
        let timed = session.step(&mut feed)?;
        timeline.steps.push(trace::Span { start, elapsed: Duration::from_secs_f64(timed.seconds) });
        timeline.calls.extend(profiler.take());
    }
    Ok(timeline)
}

/// The calls of `steps` steps by primitive, the longest first.
fn by_op(calls: &[Call], steps: usize, limits: Option<Limits>) -> Vec<Op> {
    let mut ops: Vec<Op> = Vec::new();
    let share = 1.0 / steps as f64;
    for call in calls {
        let known = ops.iter().position(|op| op.name == call.op);
        let index = known.unwrap_or_else(|| {
            let floor_seconds = limits.map(|_| 0.0);
            ops.push(Op { name: call.op, calls: 0.0, seconds: 0.0, flops: 0.0, bytes: 0.0, floor_seconds });
            ops.len() - 1
        });
        let op = &mut ops[index];
        op.calls += share;
        op.seconds += share * call.elapsed.as_secs_f64();
        op.flops += share * call.flops;
        op.bytes += share * call.bytes;
        if let (Some(floor), Some(limits)) = (&mut op.floor_seconds, limits) {
            *floor += share * limits.floor(call.flops, call.bytes);
        }
    }
    ops.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    ops
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The middle of sorted values, of which there is at least one.
fn median(sorted: &[f64]) -> f64 {
    let (low, high) = ((sorted.len() - 1) / 2, sorted.len() / 2);
    (sorted[low] + sorted[high]) / 2.0
}

#[cfg(test)]
mod tests;
