//! Every case of every table on the CUDA device under test (emulated, unless `PATCHGPT_TEST_CARD` names a card), forward and backward, against the naive
//! f64 reference; and the primitives that no gradient passes through.

use patchgpt_tensor::DType;
use patchgpt_tests::cuda::device;
use patchgpt_tests::{cases, check};

#[test]
fn every_case_agrees_with_its_reference() {
    let mut failures = Vec::new();
    for case in cases::all() {
        if let Err(e) = check::check(&case, DType::F32, device()) {
            failures.push(format!("{}: {e}", case.label()));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_second_run_gives_the_same_bits() {
    use patchgpt_tests::array::Array;
    for case in cases::all() {
        let values: Vec<Array> = case.inputs.iter().map(|(a, p)| p.values(a)).collect();
        let d_out = Array::random(&(case.forward)(&values).shape, 1.0, 7);
        let bits = || -> Vec<u64> {
            let (out, gradients) = check::compute(&case, DType::F32, device(), &d_out).expect("a result");
            gradients.iter().chain([&out]).flat_map(|a| a.data.iter().map(|x| x.to_bits())).collect()
        };
        // Another schedule each time, where emulated.
        assert_eq!(bits(), bits(), "{}", case.label());
    }
}
