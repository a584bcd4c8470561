//! The emulated device from outside: what it must notice, and how the backend behaves on it. Tests that need variables or libraries of their own
//! run this program again; those are the ignored ones.

mod cublaslt;
mod graphs;
mod hopper;
mod launches;
mod memory;
mod planted;
mod product;
mod search;
mod surroundings;

use std::process::{Command, Output};

use patchgpt_cuda::Cuda;
use patchgpt_tensor::Device;

pub(crate) fn device() -> Device {
    Cuda::emulated().expect("the emulated device").into_device()
}

/// This program again with one of its ignored tests, under a check ("" for none) and with variables.
pub(crate) fn again(test: &str, check: &str, variables: &[(&str, String)]) -> Output {
    command(test, check, variables).output().expect("this program again")
}

/// The same, not started yet.
pub(crate) fn command(test: &str, check: &str, variables: &[(&str, String)]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program's path"));
    command
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env("PATCHGPT_EMULATOR_CHECK", check);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    if check == "address" {
        command.env("LD_PRELOAD", patchgpt_cuda::address_sanitizer().expect("AddressSanitizer"));
        // Rust's own memory at the end of a process is none of the kernels'.
        command.env("ASAN_OPTIONS", "detect_leaks=0");
    }
    command
}

/// What a process said.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
