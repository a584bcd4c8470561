//! bf16 on the CPU: every case of every table against the same case in f32 on the same rounded inputs. Kernels sum in f32 and round
//! what they store, so that output and gradients may differ by a few roundings of bf16 (2^-9 each, relative to the largest magnitude).

use patchgpt_autograd::{Error, Var};
use patchgpt_tensor::{DType, Device, Tensor};
use patchgpt_tests::array::Array;
use patchgpt_tests::cases::{self, Case};

/// Half the distance between neighbouring bf16 numbers, relative: the error of one rounding.
const ROUNDING: f64 = 1.0 / 512.0;
/// Roundings on the way of a result: inputs of composed ops, intermediate results and the result itself; of attention, where the processor multiplies bf16,
/// also probabilities and their gradients.
const ROUNDINGS: f64 = 8.0;

fn bf16(x: f64) -> f64 {
    half::bf16::from_f64(x).to_f64()
}

/// Output and gradients in `dtype` for inputs and an output gradient of bf16 precision.
fn compute(case: &Case, dtype: DType, device: &Device) -> Result<Vec<Array>, Error> {
    let mut vars = Vec::new();
    for (array, placement) in &case.inputs {
        let rounded = Array { data: array.data.iter().map(|&x| bf16(x)).collect(), ..array.clone() };
        vars.push(Var::parameter(placement.place(&rounded, dtype, device)?));
    }
    let out = (case.run)(&vars)?;
    let seed = Array::random(out.shape(), 1.0, 99);
    let seed: Vec<f64> = seed.data.iter().map(|&x| bf16(x)).collect();
    out.backward_with(&Tensor::from_slice(&seed, out.shape(), device)?.cast(out.dtype())?, false)?;
    let mut results = vec![Array::of(out.tensor())?];
    for var in &vars {
        let gradient = var.gradient().ok_or_else(|| Error::value("bf16", "an input got no gradient"))?;
        assert_eq!(gradient.dtype(), dtype, "{}", case.label());
        results.push(Array::of(&gradient)?);
    }
    Ok(results)
}

/// Where bf16 lies too far from f32.
fn differences(case: &Case, device: &Device) -> Result<Vec<String>, Error> {
    let (narrow, wide) = (compute(case, DType::BF16, device)?, compute(case, DType::F32, device)?);
    let mut found = Vec::new();
    for (i, (narrow, wide)) in narrow.iter().zip(&wide).enumerate() {
        let what = if i == 0 { "output".into() } else { format!("gradient of input {}", i - 1) };
        let scale = wide.data.iter().filter(|x| x.is_finite()).fold(1e-2, |m: f64, x| m.max(x.abs()));
        for (at, (&n, &w)) in narrow.data.iter().zip(&wide.data).enumerate() {
            let same = n == w || (n.is_nan() && w.is_nan());
            let near = (n - w).abs() <= ROUNDINGS * ROUNDING * scale;
            if !(same || near) {
                found.push(format!("{}: {what}, element {at}: {n} in bf16, {w} in f32 (scale {scale})", case.label()));
                break;
            }
        }
    }
    Ok(found)
}

#[test]
fn every_case_follows_f32() {
    let device = Device::cpu_with_threads(2).expect("a CPU");
    let mut failures = Vec::new();
    for case in cases::all() {
        match differences(&case, &device) {
            Ok(found) => failures.extend(found),
            Err(error) => failures.push(format!("{}: {error}", case.label())),
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let devices: Vec<Device> = [1, 2, 3, 7].iter().map(|&n| Device::cpu_with_threads(n).expect("a CPU")).collect();
    for case in cases::all() {
        let results: Vec<_> =
            devices.iter().map(|device| compute(&case, DType::BF16, device).expect("a result")).collect();
        let bits = |arrays: &Vec<Array>| -> Vec<u64> {
            arrays.iter().flat_map(|a| a.data.iter().map(|x| x.to_bits())).collect()
        };
        assert!(results.iter().all(|other| bits(other) == bits(&results[0])), "{}", case.label());
    }
}
