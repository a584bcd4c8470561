//! The CUDA backend on the emulated device: every case of every table against the naive f64 reference.

use std::sync::OnceLock;

use patchgpt_cuda::Cuda;
use patchgpt_tensor::{DType, Device};
use patchgpt_tests::{cases, conformance};

/// The emulated device; one for all tests, so that each kernel is compiled once.
fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| Cuda::emulated().expect("the emulated device").into_device())
}

#[test]
fn every_differentiable_case_agrees_with_its_reference() {
    let cases = cases::all();
    let wrong = |case: &cases::Case| conformance::check(case, DType::F32, device()).err().map(|e| (case.label(), e));
    let failures: Vec<String> = cases.iter().filter_map(wrong).map(|(label, e)| format!("{label}: {e}")).collect();
    assert!(failures.is_empty(), "{} of {} cases failed:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn every_direct_case_agrees_with_its_reference() {
    let failures = conformance::direct(device());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
