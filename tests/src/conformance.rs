//! Holds a device against the references: every case of every table, forward and backward.
//!
//! A backend's own tests call [`differentiable`] and [`direct`] with its device and assert that nothing is reported.

use patchgpt_autograd::{Var, no_grad};
use patchgpt_tensor::{DType, Device, Tensor};

use crate::array::Array;
use crate::cases::{self, Case, Direct};
use crate::tolerance;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What a device computes for a case: the output and the gradients of its inputs, `None` where nothing arrived.
pub struct Computed {
    /// The output.
    pub output: Array,
    /// One for each input.
    pub gradients: Vec<Option<Array>>,
}

/// Runs a case on a device, and backward from `d_out`.
///
/// # Errors
/// Those of the op; an output that depends on whether it is tracked.
pub fn compute(case: &Case, dtype: DType, device: &Device, d_out: &Array) -> Outcome<Computed> {
    let place = |(array, placement): &(Array, crate::array::Placement)| placement.place(array, dtype, device);
    let tensors = case.inputs.iter().map(place).collect::<patchgpt_tensor::Result<Vec<Tensor>>>()?;
    let vars: Vec<Var> = tensors.into_iter().map(Var::parameter).collect();
    let untracked = no_grad(|| (case.run)(&vars))?;
    let out = (case.run)(&vars)?;
    let (a, output) = (Array::of(untracked.tensor())?, Array::of(out.tensor())?);
    if a.data.iter().zip(&output.data).any(|(x, y)| x.to_bits() != y.to_bits()) {
        return Err("tracked and untracked outputs differ".into());
    }
    let d_out = Tensor::from_slice(&d_out.data, out.shape(), device)?.cast(out.dtype())?;
    out.backward_with(&d_out, false)?;
    let gradients = vars.iter().map(|v| v.gradient().map(|g| Array::of(&g)).transpose());
    Ok(Computed { output, gradients: gradients.collect::<patchgpt_tensor::Result<_>>()? })
}

/// Holds a case on a device against its reference.
///
/// # Errors
/// What differs, and at which element.
pub fn check(case: &Case, dtype: DType, device: &Device) -> Result<(), String> {
    let values: Vec<Array> = case.inputs.iter().map(|(a, p)| p.values(&a.rounded(dtype))).collect();
    let expected = (case.forward)(&values);
    let d_out = Array::random(&expected.shape, 1.0, 99).rounded(dtype);
    let expected_gradients = (case.backward)(&values, &d_out);
    let computed = compute(case, dtype, device, &d_out).map_err(|e| e.to_string())?;
    let finite = values.iter().flat_map(|a| &a.data).filter(|x| x.is_finite());
    let magnitude = finite.fold(0.0, |m: f64, x| m.max(x.abs()));
    let allowed = tolerance::relative(dtype, case.reduction, magnitude);
    let mut failures = Vec::new();
    if let Some(m) = tolerance::mismatch_above(&computed.output, &expected, allowed, case.partial_sums()) {
        failures.push(format!("output: {m}"));
    }
    // A gradient is a sum of terms of the size of d_out, which may cancel (a norm over a row of one element, for instance).
    let terms = d_out.data.iter().fold(1e-3, |m: f64, x| m.max(x.abs())).max(case.partial_sums());
    for (i, (got, expected)) in computed.gradients.iter().zip(&expected_gradients).enumerate() {
        let mismatch = match got {
            Some(got) => tolerance::mismatch_above(got, expected, allowed, terms),
            None => Some("nothing arrived".into()),
        };
        failures.extend(mismatch.map(|m| format!("gradient of input {i}: {m}")));
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

/// Holds a direct case on a device against its reference.
///
/// # Errors
/// What differs, and at which element.
pub fn check_direct(case: &Direct, dtype: DType, device: &Device) -> Result<(), String> {
    let found = (case.run)(dtype, device).map_err(|e| e.to_string())?;
    let expected = (case.expected)(dtype);
    if found.len() != expected.len() {
        return Err(format!("{} outputs instead of {}", found.len(), expected.len()));
    }
    let allowed = case.reduction.map_or(0.0, |n| tolerance::relative(dtype, n, 0.0));
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let found = Array::of(found).map_err(|e| e.to_string())?;
        if let Some(m) = tolerance::mismatch(&found, expected, allowed) {
            return Err(format!("output {i}: {m}"));
        }
    }
    Ok(())
}

/// Those of `cases` that the device gets wrong in `dtype`: op, case, element.
pub fn differentiable(device: &Device, dtype: DType, cases: impl IntoIterator<Item = Case>) -> Vec<String> {
    let failure = |case: Case| {
        let wrong = check(&case, dtype, device).err()?;
        Some(format!("{} in {dtype} on {device}: {wrong}", case.label()))
    };
    cases.into_iter().filter_map(failure).collect()
}

/// Every case of a primitive that the device gets wrong in one of the case's dtypes, of those that it `supports`: op, case, element.
pub fn direct(device: &Device, supports: impl Fn(&Direct, DType) -> bool) -> Vec<String> {
    let mut failures = Vec::new();
    for case in cases::direct() {
        for &dtype in case.dtypes.iter().filter(|&&dtype| supports(&case, dtype)) {
            if let Err(wrong) = check_direct(&case, dtype, device) {
                failures.push(format!("{} in {dtype} on {device}: {wrong}", case.label()));
            }
        }
    }
    failures
}
