//! A case on a device, forward and backward, held against its reference.

use patchgpt_autograd::{Var, no_grad};
use patchgpt_tensor::{DType, Device, Tensor};

use crate::array::Array;
use crate::cases::Case;
use crate::tolerance;

/// The case's output and input gradients on a device; the tracked and the untracked output must be equal to the bit.
///
/// # Errors
/// Those of the op; outputs that differ.
pub fn compute(
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
    let seed = Tensor::from_slice(&d_out.data, out.shape(), device)?.cast(dtype)?;
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

/// Holds a case against its reference.
///
/// # Errors
/// Says what differs, or how the op failed.
pub fn check(case: &Case, dtype: DType, device: &Device) -> Result<(), String> {
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
