//! The search among cuBLASLt's algorithms: its choices decide bits and can be repeated, and it touches nothing but memory of its own.

use std::collections::HashSet;

use patchgpt_cuda::{Cuda, GemmChoices};
use patchgpt_tensor::{DType, Destination, Device, Distribution, Result, Tensor};

fn searching(known: Option<GemmChoices>) -> Result<Device> {
    Ok(Cuda::emulated()?.with_gemm_search(known)?.into_device())
}

fn choices(device: &Device) -> GemmChoices {
    device.downcast::<Cuda>().expect("CUDA").gemm_choices().expect("a search")
}

fn random(shape: &[usize], seed: u64, device: &Device) -> Tensor {
    let normal = Distribution::Normal { mean: 0.0, std: 1.0 };
    Tensor::random(shape, normal, seed, 0, DType::F32, device).expect("a tensor")
}

/// The bits of a product of 24 x 64 by 64 x 40, so that k can be cut in any of the emulated library's ways.
fn product(device: &Device) -> Vec<u32> {
    let out = random(&[24, 64], 1, device).matmul(&random(&[64, 40], 2, device)).expect("a product");
    out.to_vec::<f32>().expect("numbers").iter().map(|x| x.to_bits()).collect()
}

/// The same choices, but k cut into so many parts: the second word of an emulated algorithm.
fn cut(choices: &GemmChoices, parts: u64) -> GemmChoices {
    let mut other = choices.clone();
    for digits in other.algorithms.values_mut() {
        *digits = format!("{}{parts:016x}{}", &digits[..16], &digits[32..]);
    }
    other
}

#[test]
fn choices_decide_bits_and_repeat_them() {
    let device = searching(None).expect("a device");
    let bits = product(&device);
    let found = choices(&device);
    let keys: Vec<&String> = found.algorithms.keys().collect();
    assert!(keys.len() == 1 && keys[0].starts_with("40 x 64 x 24; a f32, leading 40, aligned to 16"), "{keys:?}");

    let again = searching(Some(found.clone())).expect("a device");
    assert_eq!(product(&again), bits);
    assert_eq!(choices(&again), found);

    let by_parts = |parts| product(&searching(Some(cut(&found, parts))).expect("a device"));
    let all: HashSet<Vec<u32>> = [1, 2, 4, 8].map(by_parts).into();
    assert!(all.len() == 4 && all.contains(&bits), "{} of 4 ways to cut k differ", all.len());
    // Without a search it is the first algorithm that the library offers.
    assert_eq!(product(&crate::device()), by_parts(1));
}

#[test]
fn choices_of_another_version_card_or_problem_are_refused() {
    let device = searching(None).expect("a device");
    product(&device);
    let found = choices(&device);
    let refused = |known: GemmChoices, parts: &[&str]| {
        // What cannot be known before is told by the product itself.
        let message = match searching(Some(known)) {
            Err(error) => error.to_string(),
            Ok(device) => {
                let product = random(&[24, 64], 1, &device).matmul(&random(&[64, 40], 2, &device));
                product.expect_err("choices that cannot be used").to_string()
            }
        };
        parts.iter().for_each(|part| assert!(message.contains(part), "`{part}` is not in: {message}"));
    };
    refused(GemmChoices { cublaslt: 120804, ..found.clone() }, &["cuBLASLt 12.8.4", "here is cuBLASLt 13.0.0"]);
    let device = "another card (7 multiprocessors)".to_string();
    refused(
        GemmChoices { device, ..found.clone() },
        &["another card (7 multiprocessors)", "here is", "patchgpt emulator"],
    );
    // More parts than k has numbers; an algorithm of nobody's; one for other sizes; no algorithm.
    let with = |digits: &dyn Fn(&str) -> String| {
        let mut other = found.clone();
        other.algorithms.values_mut().for_each(|text| *text = digits(text));
        other
    };
    let key = ["40 x 64 x 24", "cannot be used"];
    refused(cut(&found, 65), &[&key[..], &["has not made"]].concat());
    refused(with(&|_| "0".repeat(128)), &[&key[..], &["has not made"]].concat());
    refused(
        with(&|text| format!("{}{:016x}{}", &text[..32], 5, &text[48..])),
        &[&key[..], &["another problem"]].concat(),
    );
    refused(with(&|text| text[..100].into()), &[&key[..], &["128 hexadecimal digits"]].concat());
    let blas = Cuda::emulated().and_then(|cuda| cuda.with_kernel("gemm=blas")?.with_gemm_search(None));
    assert!(blas.expect_err("another library").to_string().contains("choose gemm=lt or gemm=lt_gelu"));
}

#[test]
fn a_search_writes_to_memory_of_its_own_and_is_not_recorded() {
    let device = searching(None).expect("a device");
    let (a, b) = (random(&[8, 16], 3, &device), random(&[16, 8], 4, &device));
    let held = device.downcast::<Cuda>().expect("CUDA").memory_held();
    let sum = Tensor::full(&[8, 8], 1.0, DType::F32, &device).expect("memory");
    // Were it timed into the sum itself, the product would have been added many times.
    a.matmul_into(&b, 1.0, Destination::add(&sum)).expect("a product");
    let expected = a.matmul(&b).and_then(|once| once.affine(1.0, 1.0)).expect("a product");
    assert!(sum.max_abs_diff(&expected).expect("numbers") < 1e-5);
    drop((sum, expected));
    assert_eq!(device.downcast::<Cuda>().expect("CUDA").memory_held(), held);

    let (wide, out) = (random(&[16, 24], 5, &device), Tensor::zeros(&[8, 24], DType::F32, &device).expect("memory"));
    let work = || a.matmul_into(&wide, 1.0, Destination::write(&out));
    let message = device.capture(1 << 20, work).map(drop).expect_err("a search in a recording").to_string();
    assert!(message.contains("the search for an algorithm") && message.contains("cannot be recorded"), "{message}");
    let memory = device.rehearse(work).expect("a product").expect("a device that records");
    let searched = choices(&device);
    device.capture(memory, work).expect("a graph").replay().expect("a replay");
    assert_eq!(choices(&device), searched);
    assert_eq!(out.to_f64_vec().expect("numbers"), a.matmul(&wide).and_then(|x| x.to_f64_vec()).expect("numbers"));
}
