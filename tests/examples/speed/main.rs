//! Every op of the case tables at training size on a device: time, and bytes or FLOPs a second beside the device's own
//! copy and product, and kernels with variants once more by each. Lines of tab-separated fields, as
//! `cuda/on-a-card/speed_torch.py` writes them for PyTorch.
//!
//! ```sh
//! cargo run -p patchgpt-tests --example speed -- cuda:0          # or cuda:emulated, cpu: small shapes, to see that it runs
//! ```

use std::error::Error;
use std::time::Instant;

use patchgpt_autograd::{Var, no_grad};
use patchgpt_cuda::{Cuda, FAMILIES};
use patchgpt_tensor::{DType, Device, Tensor};
use patchgpt_tests::cases::{self, Case};

/// Median and 95th percentile of the seconds that a call takes; several calls between two waits, so that starting them costs nothing.
fn time(
    device: &Device,
    calls: usize,
    samples: usize,
    mut call: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<(f64, f64), Box<dyn Error>> {
    call()?; // compiles the kernels
    let mut times = Vec::new();
    for _ in 0..samples {
        device.synchronize()?;
        let start = Instant::now();
        for _ in 0..calls {
            call()?;
        }
        device.synchronize()?;
        times.push(start.elapsed().as_secs_f64() / calls as f64);
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok((times[times.len() / 2], times[(times.len() * 95 / 100).min(times.len() - 1)]))
}

/// One line: op (with `=variant` if one is chosen), case, dtype, pass, median and 95th percentile in microseconds, GB/s, TFLOP/s.
fn line(case: &Case, variant: &str, dtype: DType, pass: &str, (median, p95): (f64, f64), factor: f64) {
    let bytes = case.traffic * dtype.size() as f64 * factor;
    let (gigabytes, teraflops) = (bytes / median / 1e9, case.flops * factor / median / 1e12);
    println!(
        "{}{variant}\t{}\t{dtype}\t{pass}\t{:.1}\t{:.1}\t{gigabytes:.1}\t{teraflops:.3}",
        case.op,
        case.name,
        median * 1e6,
        p95 * 1e6
    );
}

fn measure(
    case: &Case,
    variant: &str,
    dtype: DType,
    device: &Device,
    (calls, samples): (usize, usize),
) -> Result<(), Box<dyn Error>> {
    let vars: Vec<Var> = case
        .inputs
        .iter()
        .map(|(array, placement)| Ok(Var::parameter(placement.place(array, dtype, device)?)))
        .collect::<patchgpt_tensor::Result<_>>()?;
    let forward = || no_grad(|| (case.run)(&vars)).map(drop).map_err(Into::into);
    line(case, variant, dtype, "forward", time(device, calls, samples, forward)?, 1.0);
    let out = (case.run)(&vars)?;
    let d_out = Tensor::full(out.shape(), 1.0, out.dtype(), device)?;
    let both = || Ok((case.run)(&vars)?.backward_with(&d_out, false)?);
    // Backward of a product is two products, of the rest about two passes.
    line(case, variant, dtype, "forward and backward", time(device, calls, samples, both)?, 3.0);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "cuda:0".into());
    let open = |kernel: &str| -> Result<Device, Box<dyn Error>> {
        Ok(match name.strip_prefix("cuda:") {
            Some("emulated") => Cuda::emulated()?.with_kernel(kernel)?.into_device(),
            Some(number) => Cuda::open(number.parse()?)?.with_kernel(kernel)?.into_device(),
            None => Device::cpu()?,
        })
    };
    let device = open("")?;
    let on_card = device.downcast::<Cuda>().is_some_and(|cuda| !cuda.is_emulated());
    let (calls, samples) = if on_card { (10, 20) } else { (1, 1) };
    println!("# {device}");
    println!("op\tcase\tdtype\tpass\tmedian us\tp95 us\tGB/s\tTFLOP/s");
    let cases = || match on_card {
        true => cases::training_size(4096, 1024, 768, 3072, 32768),
        false => cases::training_size(32, 16, 64, 128, 96),
    };
    // The copy that bandwidth is judged by: beyond any cache.
    let bytes: usize = if on_card { 1 << 30 } else { 1 << 16 };
    let x = Tensor::zeros(&[bytes / 4], DType::F32, &device)?;
    let y = Tensor::zeros(&[bytes / 4], DType::F32, &device)?;
    let (copy, p95) = time(&device, calls, samples, || Ok(y.copy_(&x)?))?;
    let rate = 2.0 * bytes as f64 / copy / 1e9;
    println!("copy\t{bytes} bytes\tf32\tforward\t{:.1}\t{:.1}\t{rate:.1}\t0", copy * 1e6, p95 * 1e6);
    for dtype in [DType::F32, DType::BF16] {
        for case in cases() {
            if let Err(error) = measure(&case, "", dtype, &device, (calls, samples)) {
                println!("# {} in {dtype}: {error}", case.label());
            }
        }
    }
    let families = if device.downcast::<Cuda>().is_some() { FAMILIES } else { &[] };
    for (family, (variant, _)) in families.iter().flat_map(|f| f.variants.iter().map(move |v| (f.name, v))) {
        let device = open(&format!("{family}={variant}"))?;
        // An op's name ends with its family's: causal_attention.
        for case in cases().into_iter().filter(|case| case.op.ends_with(family)) {
            if let Err(error) = measure(&case, &format!("={variant}"), DType::BF16, &device, (calls, samples)) {
                println!("# {} by {variant}: {error}", case.label());
            }
        }
    }
    Ok(())
}
