//! `patchgpt devices`: what this machine can compute on, or what is missing for it.

use std::process::ExitCode;

use patchgpt_cuda::{Probe, emulator_compiler, probe};
use patchgpt_models::Result;
use patchgpt_tensor::Device;

use crate::output::print_line;

/// The devices of this machine, or what is missing for them.
///
/// What is listed first on a line is what --device takes. Nothing here needs a card, a driver or a compiler.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> Result<ExitCode> {
    let cpu = Device::cpu().map_or_else(|error| error.to_string(), |device| device.to_string());
    print_line(&format!("cpu            {cpu}"))?;
    let Probe { devices, driver, nvrtc, cublas, cublas_lt } = probe();
    match devices {
        Ok(devices) => {
            for device in devices {
                let (major, minor) = device.compute_capability;
                // The kernels need Ampere's instructions; `cuda` is the first visible card.
                let name = if device.ordinal == 0 { "cuda" } else { "" };
                let fits = if major < 8 { "; too old, 8.0 is needed" } else { "" };
                print_line(&format!(
                    "{name:<14} card {}: {}, {:.1} GiB, compute capability {major}.{minor}, {} multiprocessors{fits}",
                    device.ordinal,
                    device.name,
                    device.memory as f64 / 2f64.powi(30),
                    device.multiprocessors
                ))?;
            }
        }
        Err(error) => print_line(&format!("cuda           not available: {error}"))?,
    }
    match emulator_compiler() {
        Ok(compiler) => print_line(&format!(
            "cuda:emulated  the CUDA kernels on the CPU, to find mistakes; hundreds of times slower ({compiler})"
        ))?,
        Err(error) => print_line(&format!("cuda:emulated  not available: {error}"))?,
    }
    print_line("\nlibraries of CUDA")?;
    let version = |found: Option<(i32, i32)>| found.map(|(major, minor)| format!("{major}.{minor}"));
    match version(driver) {
        Some(version) => print_line(&format!("  libcuda      serves CUDA up to {version}"))?,
        None => print_line("  libcuda      missing or not usable (see above)")?,
    }
    match nvrtc {
        Ok((major, minor)) => print_line(&format!("  libnvrtc     {major}.{minor}"))?,
        Err(error) => print_line(&format!("  libnvrtc     {error}"))?,
    }
    for (name, found) in [("libcublas", cublas.map(|version| version as usize)), ("libcublasLt", cublas_lt)] {
        match found {
            Ok(version) => print_line(&format!("  {name:<12} {}.{}", version / 10000, version % 10000 / 100))?,
            Err(error) => print_line(&format!("  {name:<12} {error}"))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}
