//! Every case of every table, forward and backward, on every backend, dtype and instruction path, against the naive f64 reference.

use std::process::Command;

use patchgpt_tensor::{DType, Device};
use patchgpt_tests::array::Array;
use patchgpt_tests::cases;
use patchgpt_tests::conformance::{self, Computed, check, check_direct, compute};

/// Devices under test: the CPU with one and with several threads.
fn devices() -> Vec<Device> {
    [1, 3].iter().map(|&n| Device::cpu_with_threads(n).expect("a CPU")).collect()
}

fn assert_none(failures: Vec<String>) {
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_case_agrees_with_its_reference() {
    let mut failures = Vec::new();
    for device in devices() {
        for dtype in [DType::F64, DType::F32] {
            let cases = cases::all().into_iter().chain(cases::large());
            failures.extend(conformance::differentiable(&device, dtype, cases));
        }
    }
    assert_none(failures);
}

#[test]
fn primitives_without_gradient_agree_with_their_reference() {
    assert_none(devices().iter().flat_map(|device| conformance::direct(device, |_, _| true)).collect());
}

/// The paths that the other tests of this process do not take; each in a process of its own, since a path is chosen once.
#[test]
fn every_instruction_path_agrees_with_the_reference() {
    const VARIABLE: &str = "PATCHGPT_CPU";
    let own = Device::cpu_with_threads(1).expect("a CPU").backend().name();
    let mut paths = 0;
    for path in ["portable", "avx2", "avx512", "avx512bf16"] {
        if std::env::var_os(VARIABLE).is_some() || own.ends_with(&format!(", {path})")) {
            continue;
        }
        let run = |test: &str| {
            let program = std::env::current_exe().expect("this program");
            let arguments = ["--exact", test, "--test-threads=1"];
            Command::new(program).args(arguments).env(VARIABLE, path).output().expect("a process")
        };
        let probe = run("a_device_opens");
        if !probe.status.success() {
            // Only a processor that lacks the instructions may refuse.
            assert!(String::from_utf8_lossy(&probe.stdout).contains("lacks"), "{path} does not open");
            continue;
        }
        paths += 1;
        for test in ["every_case_agrees_with_its_reference", "primitives_without_gradient_agree_with_their_reference"] {
            let output = run(test);
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{path}: {said}");
        }
    }
    // The portable path is on every machine, and is the best one on none that has another.
    assert!(paths > 0 || own.contains("portable") || std::env::var_os(VARIABLE).is_some());
}

#[test]
fn a_device_opens() {
    if let Err(error) = Device::cpu_with_threads(1) {
        panic!("{error}");
    }
}

#[test]
fn a_wrong_reference_is_noticed() {
    // The comparison itself must be able to fail: one element of one gradient off by a thousandth.
    let device = Device::cpu().expect("a CPU");
    let (mut noticed, mut tried) = (0, 0);
    for mut case in cases::all() {
        if case.inputs[0].0.data.is_empty() {
            continue;
        }
        let backward = case.backward;
        case.backward = Box::new(move |x, d| {
            let mut gradients = backward(x, d);
            let scale = gradients[0].data.iter().fold(1e-3, |m: f64, g| m.max(g.abs()));
            gradients[0].data[0] += 1e-3 * scale;
            gradients
        });
        tried += 1;
        noticed += usize::from(check(&case, DType::F64, &device).is_err());
    }
    for mut case in cases::direct() {
        let expected = case.expected;
        if expected(DType::F64).iter().all(|a| a.data.is_empty()) {
            continue;
        }
        case.expected = Box::new(move |dtype| {
            let mut arrays = expected(dtype);
            let first = arrays.iter_mut().find_map(|a| a.data.first_mut()).expect("an element");
            *first = if first.is_finite() { *first * 1.001 + 1e-3 } else { 0.0 };
            arrays
        });
        tried += 1;
        noticed += usize::from(check_direct(&case, DType::F64, &device).is_err());
    }
    assert_eq!(noticed, tried);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let devices: Vec<Device> = [1, 2, 3, 7].iter().map(|&n| Device::cpu_with_threads(n).expect("a CPU")).collect();
    let large = cases::training_size(256, 128, 128, 200, 300);
    for case in cases::all().into_iter().chain(large) {
        let shape = (case.forward)(&case.inputs.iter().map(|(a, p)| p.values(a)).collect::<Vec<_>>()).shape;
        let d_out = Array::random(&shape, 1.0, 7);
        for dtype in [DType::F32, DType::F64] {
            let results: Vec<_> = devices
                .iter()
                .map(|d| compute(&case, dtype, d, &d_out).unwrap_or_else(|e| panic!("{}: {e}", case.label())))
                .collect();
            let bits = |computed: &Computed| -> Vec<u64> {
                let arrays = computed.gradients.iter().flatten().chain([&computed.output]);
                arrays.flat_map(|a| a.data.iter().map(|x| x.to_bits())).collect()
            };
            for other in &results[1..] {
                assert_eq!(bits(&results[0]), bits(other), "{} in {dtype}", case.label());
            }
        }
    }
    for case in cases::direct() {
        for &dtype in case.dtypes {
            let run = |device: &Device| {
                let outputs = (case.run)(dtype, device).unwrap_or_else(|e| panic!("{}: {e}", case.label()));
                let values = outputs.iter().flat_map(|t| t.to_f64_vec().expect("a tensor"));
                values.map(f64::to_bits).collect::<Vec<u64>>()
            };
            let first = run(&devices[0]);
            for device in &devices[1..] {
                assert_eq!(first, run(device), "{} in {dtype}", case.label());
            }
        }
    }
}
