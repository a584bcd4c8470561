//! What the benches of patchgpt share: work that is timed by criterion and held against the roofline of the machine.
//!
//! `cargo bench -p patchgpt-benches` runs all of them; `cargo bench -p patchgpt-benches --bench ops -- matmul` those whose name
//! contains "matmul". After criterion's own lines each piece of work prints GFLOP/s, GB/s and its share of the roofline: the
//! ceilings are measured at the start ([`Limits`]), the work is counted by running it once on a profiled device.

pub mod worker;

use std::rc::Rc;
use std::time::{Duration, Instant};

use criterion::BenchmarkGroup;
use criterion::measurement::WallTime;
use patchgpt_autograd::{Result, Var};
use patchgpt_tensor::profile::{Call, Profiler};
use patchgpt_tensor::{DType, Device, Limits, Tensor};
use patchgpt_tests::array::Placement;
use patchgpt_tests::cases::Case;

/// Work on tensors of one device, ready to be run again and again.
pub type Run = Box<dyn Fn() -> Result<()>>;

/// The work of one run, counted call by call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Operations.
    pub flops: f64,
    /// Least bytes moved.
    pub bytes: f64,
    /// Least seconds under the measured ceilings.
    pub floor: f64,
    /// Of the floor, the seconds of calls that arithmetic bounds.
    pub arithmetic: f64,
}

/// A device and its measured ceilings.
pub struct Roofline {
    device: Device,
    limits: Limits,
}

impl Roofline {
    /// The CPU, one thread per core, and its ceilings for `dtype`, which are printed.
    pub fn cpu(dtype: DType) -> Roofline {
        let device = Device::cpu().expect("a CPU");
        let limits = device.backend().limits(dtype).expect("a CPU measures its ceilings");
        println!(
            "{device}, {dtype}: {:.1} GFLOP/s of multiply-adds, {:.1} GB/s in a copy of {} MiB\n",
            limits.flops_per_second / 1e9,
            limits.bytes_per_second / 1e9,
            limits.copied_bytes >> 20
        );
        Roofline { device, limits }
    }

    /// The device that is timed.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The work of what `build` makes, by running it once on a profiled device.
    pub fn work(&self, build: &dyn Fn(&Device) -> Result<Run>) -> Work {
        calls(&self.device, build).expect("work that runs").iter().fold(Work::default(), |sum, call| {
            let floor = self.limits.floor(call.flops, call.bytes);
            let bound_by_arithmetic = call.flops / self.limits.flops_per_second >= floor;
            Work {
                flops: sum.flops + call.flops,
                bytes: sum.bytes + call.bytes,
                floor: sum.floor + floor,
                arithmetic: sum.arithmetic + if bound_by_arithmetic { floor } else { 0.0 },
            }
        })
    }

    /// Times what `build` makes under `name` and prints its rates and its share of the roofline.
    pub fn bench(&self, group: &mut BenchmarkGroup<'_, WallTime>, name: &str, build: &dyn Fn(&Device) -> Result<Run>) {
        let mut samples: Vec<f64> = Vec::new();
        let mut work = None;
        group.bench_function(name, |bencher| {
            // Not before: names that are filtered out cost nothing.
            work.get_or_insert_with(|| self.work(build));
            let run = build(&self.device).expect("work that can be built");
            bencher.iter_custom(|iterations| {
                let begun = Instant::now();
                for _ in 0..iterations {
                    run().expect("work that runs");
                }
                self.device.synchronize().expect("a device that answers");
                let elapsed = begun.elapsed();
                samples.push(elapsed.as_secs_f64() / iterations as f64);
                elapsed.max(Duration::from_nanos(1))
            });
        });
        let Some(work) = work.filter(|_| !samples.is_empty()) else {
            return;
        };
        samples.sort_by(f64::total_cmp);
        let seconds = samples[samples.len() / 2];
        println!(
            "  {name}: {:.1} GFLOP/s, {:.1} GB/s; {:.0}% of the roofline (floor {:.3} ms, {:.0}% of it arithmetic)\n",
            work.flops / seconds / 1e9,
            work.bytes / seconds / 1e9,
            100.0 * work.floor / seconds,
            1e3 * work.floor,
            100.0 * work.arithmetic / work.floor
        );
    }
}

/// The primitives that what `build` makes calls, by running it once on a profiled device.
///
/// # Errors
/// Those of the work.
pub fn calls(device: &Device, build: &dyn Fn(&Device) -> Result<Run>) -> Result<Vec<Call>> {
    let profiler = Profiler::around(device);
    let run = build(&profiler.device())?;
    profiler.take();
    run()?;
    Ok(profiler.take())
}

/// The inputs of a case of the tests' tables, placed on a device.
fn place(case: &Case, dtype: DType, device: &Device) -> Result<Vec<Tensor>> {
    let place = |(array, placement): &(_, Placement)| Ok(placement.place(array, dtype, device)?);
    case.inputs.iter().map(place).collect()
}

/// The forward pass of a case alone.
pub fn forward(case: &Rc<Case>, dtype: DType, device: &Device) -> Result<Run> {
    let (case, inputs) = (case.clone(), place(case, dtype, device)?);
    let inputs: Vec<Var> = inputs.into_iter().map(Var::constant).collect();
    Ok(Box::new(move || patchgpt_autograd::no_grad(|| (case.run)(&inputs).map(drop))))
}

/// Forward and backward of a case, the output's gradient being the output itself. The inputs' gradients are new each time: none is added to.
pub fn forward_backward(case: &Rc<Case>, dtype: DType, device: &Device) -> Result<Run> {
    let (case, inputs) = (case.clone(), place(case, dtype, device)?);
    Ok(Box::new(move || {
        let inputs: Vec<Var> = inputs.iter().map(|x| Var::parameter(x.clone())).collect();
        let out = (case.run)(&inputs)?;
        out.backward_with(out.tensor(), false)
    }))
}

/// What a case computes.
pub fn output(case: &Case, dtype: DType, device: &Device) -> Result<Vec<f64>> {
    let inputs: Vec<Var> = place(case, dtype, device)?.into_iter().map(Var::constant).collect();
    let out = patchgpt_autograd::no_grad(|| (case.run)(&inputs))?;
    Ok(out.tensor().to_f64_vec()?)
}

/// AdamW over `len` parameters with f32 moments, clipping included.
pub fn adamw(len: usize, device: &Device) -> Result<Run> {
    let flat = || random(&[len], device);
    let (parameters, gradients, first_moment) = (flat()?, flat()?, flat()?);
    let second_moment = gradients.mul(&gradients)?;
    let learning_rate = Tensor::scalar(1e-4, DType::F32, device)?;
    let step = Tensor::scalar(3.0, DType::I32, device)?;
    Ok(Box::new(move || {
        let (_, clip) = gradients.global_norm(1.0)?;
        patchgpt_tensor::AdamW {
            parameters: &parameters,
            gradients: &gradients,
            first_moment: &first_moment,
            second_moment: &second_moment,
            learning_rate: &learning_rate,
            clip: &clip,
            step: &step,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            decay_len: len,
            rounded: None,
        }
        .run()?;
        Ok(())
    }))
}

/// Random numbers in [-1, 1), the same every time.
pub fn random(shape: &[usize], device: &Device) -> Result<Tensor> {
    let uniform = patchgpt_tensor::Distribution::Uniform { low: -1.0, high: 1.0 };
    Ok(Tensor::random(shape, uniform, 7, 0, DType::F32, device)?)
}
