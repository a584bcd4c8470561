//! Every case of every table, forward and backward, on every backend and dtype, against the naive f64 reference.

use patchgpt_autograd::{Var, no_grad};
use patchgpt_tensor::{DType, Device, PRIMITIVES};
use patchgpt_tests::array::Array;
use patchgpt_tests::cases::{self, Case};
use patchgpt_tests::tolerance;

/// Devices under test: the CPU with one and with several threads.
fn devices() -> Vec<Device> {
    [1, 3].iter().map(|&n| Device::cpu_with_threads(n).expect("a CPU")).collect()
}

/// The case's output and input gradients on a device.
fn compute(
    case: &Case,
    dtype: DType,
    device: &Device,
    d_out: &Array,
) -> Result<(Array, Vec<Array>), Box<dyn std::error::Error>> {
    let vars: Vec<Var> = case
        .inputs
        .iter()
        .map(|(array, placement)| Ok(Var::parameter(placement.place(array, dtype, device)?)))
        .collect::<Result<_, patchgpt_tensor::Error>>()?;
    let untracked = no_grad(|| (case.run)(&vars))?;
    let out = (case.run)(&vars)?;
    let (a, b) = (Array::of(untracked.tensor())?, Array::of(out.tensor())?);
    if a.data.iter().zip(&b.data).any(|(x, y)| x.to_bits() != y.to_bits()) {
        return Err("tracked and untracked outputs differ".into());
    }
    let seed = patchgpt_tensor::Tensor::from_slice(&d_out.data, out.shape(), device)?.cast(dtype)?;
    out.backward_with(&seed, false)?;
    let gradients = vars
        .iter()
        .map(|v| match v.gradient() {
            Some(g) => Array::of(&g),
            None => Ok(Array { shape: vec![usize::MAX], data: vec![] }),
        })
        .collect::<Result<_, _>>()?;
    Ok((b, gradients))
}

fn check(case: &Case, dtype: DType, device: &Device) -> Result<(), String> {
    let values: Vec<Array> = case.inputs.iter().map(|(a, p)| p.values(&a.rounded(dtype))).collect();
    let expected = (case.forward)(&values);
    let d_out = Array::random(&expected.shape, 1.0, 99).rounded(dtype);
    let expected_gradients = (case.backward)(&values, &d_out);
    let (out, gradients) = compute(case, dtype, device, &d_out).map_err(|e| e.to_string())?;
    // Inputs of large magnitude carry that magnitude's rounding into an exponent.
    let magnitude = values.iter().flat_map(|a| &a.data).fold(1.0, |m: f64, x| m.max(x.abs()));
    let allowed = tolerance::relative(dtype, case.reduction) * magnitude.sqrt();
    let mut failures = Vec::new();
    if let Some(m) = tolerance::mismatch(&out, &expected, allowed) {
        failures.push(format!("output: {m}"));
    }
    // A gradient is a sum of terms of the size of d_out, which may cancel (a norm over a row of one element, for instance).
    let terms = d_out.data.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
    for (i, (got, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        if let Some(m) = tolerance::mismatch_above(got, expected, allowed, terms) {
            failures.push(format!("gradient of input {i}: {m}"));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

#[test]
fn every_case_agrees_with_its_reference() {
    let mut failures = Vec::new();
    for device in devices() {
        for dtype in [DType::F64, DType::F32] {
            for case in cases::all() {
                if let Err(e) = check(&case, dtype, &device) {
                    failures.push(format!("{} in {dtype} on {device}: {e}", case.label()));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_wrong_reference_is_noticed() {
    // The comparison itself must be able to fail: one element of one gradient off by a thousandth.
    let device = Device::cpu().expect("a CPU");
    let mut noticed = 0;
    let mut tried = 0;
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
    assert_eq!(noticed, tried);
}

#[test]
fn every_primitive_has_cases() {
    let tables: Vec<&str> = cases::all().iter().map(|c| c.op).collect();
    // Covered by tests of their own, in which nothing is differentiated.
    let direct = ["fill", "random", "adamw", "global_norm"];
    for primitive in PRIMITIVES {
        assert!(tables.contains(primitive) || direct.contains(primitive), "{primitive} has no case table");
    }
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
            let bits = |(out, gradients): &(Array, Vec<Array>)| -> Vec<u64> {
                gradients.iter().chain([out]).flat_map(|a| a.data.iter().map(|x| x.to_bits())).collect()
            };
            for other in &results[1..] {
                assert_eq!(bits(&results[0]), bits(other), "{} in {dtype}", case.label());
            }
        }
    }
}
