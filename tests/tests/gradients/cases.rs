//! Every case is checked, small ones element by element, large ones along random directions, in its placements.

use patchgpt_autograd::Var;
use patchgpt_autograd::gradcheck::{Method, Report, Verdict, gradcheck};
use patchgpt_tensor::{DType, Device, Tensor};
use patchgpt_tests::cases::{self, Case};

/// The inputs of a case where and as it places them, in f64.
pub(crate) fn inputs(case: &Case, device: &Device) -> Vec<Tensor> {
    case.inputs.iter().map(|(x, placement)| placement.place(x, DType::F64, device).expect("a tensor")).collect()
}

pub(crate) fn device() -> Device {
    static DEVICE: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    DEVICE.get_or_init(|| Device::cpu_with_threads(1).expect("a CPU")).clone()
}

fn check(case: &Case) -> Result<Report, String> {
    let run = |x: &[Var]| (case.run)(x);
    gradcheck(run, &inputs(case, &device()), &case.options()).map_err(|e| format!("{}: {e}", case.label()))
}

fn assert_pass(cases: Vec<Case>) -> Vec<Report> {
    let (mut failures, mut reports) = (Vec::new(), Vec::new());
    for case in cases {
        let nothing = case.inputs.iter().all(|(x, _)| x.data.is_empty());
        match check(&case) {
            Ok(report) if report.verdict() == Verdict::Passed => reports.push(report),
            // Without a single element there is nothing to certify.
            Ok(report) if nothing && report.verdict() == Verdict::Unchecked => {}
            Ok(report) => failures.push(format!("{}: {report}", case.label())),
            Err(error) => failures.push(error),
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    reports
}

#[test]
fn every_case_passes() {
    let reports = assert_pass(cases::all());
    assert!(reports.len() > 300, "{} cases", reports.len());
}

#[test]
fn every_large_case_passes() {
    let reports = assert_pass(cases::large());
    assert!(reports.iter().all(|report| report.inputs[0].method == Method::Directions));
}
