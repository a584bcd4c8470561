//! The CUDA backend on the emulated device: every case of every table against the naive f64 reference.

use std::sync::OnceLock;

use patchgpt_cuda::Cuda;
use patchgpt_tensor::{DType, Device};
use patchgpt_tests::{cases, check};

/// The emulated device; one for all tests, so that each kernel is compiled once.
fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| Cuda::emulated().expect("the emulated device").into_device())
}

/// Every case whose op is one of `ops`, each in f32.
fn conform(ops: &[&str]) {
    let mut failures = Vec::new();
    let mut count = 0;
    for case in cases::all().iter().filter(|case| ops.contains(&case.op)) {
        count += 1;
        if let Err(e) = check::check(case, DType::F32, device()) {
            failures.push(format!("{}: {e}", case.label()));
        }
    }
    assert!(count > 0, "no cases of {ops:?}");
    assert!(failures.is_empty(), "{} of {count} cases failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn all_cases() {
    let mut ops: Vec<&str> = cases::all().iter().map(|c| c.op).collect();
    ops.dedup();
    conform(&ops);
}
