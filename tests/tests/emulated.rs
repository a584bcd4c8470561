//! Every case of every table on the CUDA device under test (emulated, unless `PATCHGPT_TEST_CARD` names a card), forward and backward, against the naive
//! f64 reference; and the primitives that no gradient passes through.

use patchgpt_tensor::DType;
use patchgpt_tests::array::Array;
use patchgpt_tests::cuda::device;
use patchgpt_tests::{cases, conformance};

#[test]
fn every_differentiable_case_agrees_with_its_reference() {
    let failures = conformance::differentiable(device(), DType::F32, cases::all());
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_direct_case_agrees_with_its_reference() {
    // Products on a card are f32 and bf16.
    let failures = conformance::direct(device(), |case, dtype| !(case.op == "matmul" && dtype == DType::F64));
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_second_run_gives_the_same_bits() {
    for case in cases::all() {
        let values: Vec<Array> = case.inputs.iter().map(|(a, p)| p.values(a)).collect();
        let d_out = Array::random(&(case.forward)(&values).shape, 1.0, 7);
        let bits = || -> Vec<u64> {
            let computed = conformance::compute(&case, DType::F32, device(), &d_out).expect("a result");
            let arrays = computed.gradients.iter().flatten().chain([&computed.output]);
            arrays.flat_map(|a| a.data.iter().map(|x| x.to_bits())).collect()
        };
        // Another schedule each time, where emulated.
        assert_eq!(bits(), bits(), "{}", case.label());
    }
}
