//! An op from its kernel to a training run: `center`, which takes its mean from each row. `docs/writing-a-kernel.md`
//! walks through it.
//!
//! ```sh
//! cargo run -p patchgpt-tests --example center -- cuda:emulated   # or cuda:0, or cpu
//! ```

use std::error::Error;
use std::time::Instant;

use patchgpt_autograd::{Context, Function, Gradients, Saved, Var, apply, gradcheck};
use patchgpt_cuda::{Cuda, KernelSource};
use patchgpt_models::{AdamW, AdamWSettings, Gpt, TrainBatch, config::Config, regime::Regime};
use patchgpt_tensor::{DType, Destination, Device, Distribution, Result, Tensor};

// ---- the launcher

static KERNEL: KernelSource = KernelSource { name: "center", text: include_str!("center.cu"), headers: &[] };

/// `out (+)= x - mean(x)` over rows; both contiguous. 2 elements moved and 2 FLOPs for each element (one more moved
/// where it is added to).
fn center(out: Destination, x: &Tensor) -> Result<()> {
    let width = x.dim(x.rank() - 1);
    match x.device().downcast::<Cuda>() {
        Some(cuda) => cuda
            .kernel(&KERNEL, "center")
            .define("X", x.dtype())
            .write(out.tensor)
            .value(i32::from(out.accumulate))
            .read(x)
            .value(width as u32)
            .blocks(x.len() / width.max(1))
            .threads(128)
            .launch()?,
        // Elsewhere from primitives; also what the kernel is held against.
        None => {
            let mean = x.mean(&[x.rank() - 1])?.broadcast_to(x.shape())?;
            return x.binary_into(patchgpt_tensor::Binary::Sub, &mean, out);
        }
    }
    out.tensor.mark_written();
    Ok(())
}

// ---- the differentiable function

/// `y = x - mean(x)`. The op is a symmetric matrix, so its gradient is itself: `d_x = d_y - mean(d_y)`; nothing is
/// saved.
struct Center;

impl Function for Center {
    fn name(&self) -> &'static str {
        "center"
    }

    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> patchgpt_autograd::Result<Vec<Tensor>> {
        let x = inputs[0].contiguous()?;
        let out = Tensor::empty(x.shape(), x.dtype(), x.device())?;
        center(Destination::write(&out), &x)?;
        Ok(vec![out])
    }

    fn backward(
        &self,
        saved: &Saved,
        d_outputs: &[Option<Tensor>],
        d_inputs: &mut Gradients,
    ) -> patchgpt_autograd::Result<()> {
        let d_y = saved.d_out(d_outputs)?.contiguous()?;
        d_inputs.write(0, |d_x| center(d_x, &d_y))
    }
}

fn centered(x: &Var) -> patchgpt_autograd::Result<Var> {
    Ok(apply(Center, &[x])?.remove(0))
}

// ---- is it right?

fn random(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::random(shape, Distribution::Normal { mean: 0.3, std: 1.0 }, 7, 0, dtype, device)
}

/// Values against the primitives on the CPU, gradients against differences: rows of one element, odd and whole
/// multiples of the block, many rows.
fn check(device: &Device) -> std::result::Result<(), Box<dyn Error>> {
    for shape in [[1, 1], [3, 5], [2, 128], [2, 129], [3, 300]] {
        let x = random(&shape, DType::F64, device)?;
        let y = centered(&Var::constant(x.clone()))?;
        let expected = x.to_device(&Device::cpu()?)?;
        let expected = expected.sub(&expected.mean(&[1])?.broadcast_to(&shape)?)?;
        let off = y.tensor().to_device(&Device::cpu()?)?.max_abs_diff(&expected)?;
        if off.is_nan() || off > 1e-13 {
            return Err(format!("center {shape:?} is off by {off:e}").into());
        }
        // A row of one element is its own mean: its gradient is zero, and that must be said.
        let zero_inputs = if shape[1] == 1 { vec![0] } else { vec![] };
        let options = gradcheck::Options { element_limit: 20, zero_inputs, ..gradcheck::Options::default() };
        gradcheck::gradcheck(|x: &[Var]| centered(&x[0]), &[x], &options)?.into_result()?;
    }
    println!("center agrees with the primitives, and its gradient with differences");
    Ok(())
}

// ---- how fast is it?

/// The median time of `f`, the device being waited for.
fn seconds(device: &Device, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..9 {
        device.synchronize()?;
        let start = Instant::now();
        f()?;
        device.synchronize()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Bytes a second beside those of a copy of the same tensor, which moves as many.
fn bench(device: &Device, rows: usize) -> Result<()> {
    let x = random(&[rows, 1024], DType::F32, device)?;
    let out = Tensor::empty(x.shape(), x.dtype(), device)?;
    let bytes = 2.0 * (x.len() * x.dtype().size()) as f64;
    let ours = seconds(device, || center(Destination::write(&out), &x))?;
    let copy = seconds(device, || out.copy_(&x))?;
    println!(
        "center of {rows} x 1024 on {device}: {:.2} GB/s, {:.0}% of a copy's {:.2} GB/s",
        bytes / ours / 1e9,
        copy / ours * 100.0,
        bytes / copy / 1e9
    );
    Ok(())
}

// ---- does a model train with it?

/// Losses of a small GPT whose last hidden states are centered before the head, each step on the same text.
fn train(device: &Device, steps: usize) -> std::result::Result<Vec<f64>, Box<dyn Error>> {
    let mut config = Config::preset("tiny")?.model;
    (config.layers, config.hidden, config.ffn, config.heads, config.kv_heads) = (1, 32, 64, 2, 2);
    let gpt = Gpt::new(&config, DType::F32, device, 42)?;
    let mut optimizer = AdamW::new(gpt.parameters(), AdamWSettings::default())?;
    let text = b"Shall I compare thee to a summer's day? Thou art more lovely and more temperate";
    let tokens: Vec<i32> = text.iter().map(|&byte| byte.into()).collect();
    let batch = TrainBatch::from_windows(&tokens[..68], 1, &Regime::patch(4), &gpt)?;
    let mut losses = Vec::new();
    for _ in 0..steps {
        gpt.parameters().zero_gradients()?;
        let hidden = centered(&gpt.hidden(batch.inputs())?)?;
        let (targets, weights) = (batch.targets(), batch.target_weights());
        let loss = hidden.linear_cross_entropy(gpt.head(), targets, weights, &batch.mean_scale()?)?;
        loss.backward()?;
        optimizer.step(gpt.parameters(), 1e-2, Some(1.0))?;
        losses.push(loss.item()?);
    }
    Ok(losses)
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "cuda:emulated".into());
    let device = match name.strip_prefix("cuda:") {
        Some("emulated") => Cuda::emulated()?.into_device(),
        Some(number) => Cuda::open(number.parse()?)?.into_device(),
        None => Device::cpu()?,
    };
    check(&device)?;
    bench(&device, if name == "cuda:emulated" { 64 } else { 65536 })?;
    let (here, cpu) = (train(&device, 8)?, train(&Device::cpu()?, 8)?);
    for (step, (a, b)) in here.iter().zip(&cpu).enumerate() {
        println!("step {step}: loss {a:.5}, on the CPU {b:.5}");
        if (a - b).abs().is_nan() || (a - b).abs() > 2e-4 * b {
            return Err(format!("the losses differ at step {step}").into());
        }
    }
    Ok(())
}
