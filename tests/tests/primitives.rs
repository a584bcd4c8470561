//! What case tables cannot say of primitives: integers that no f64 holds, how random numbers are distributed, NaN in a norm, mistakes.

use patchgpt_tensor::{DType, Destination, Device, Distribution, Error, Tensor};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn cpu() -> Device {
    Device::cpu_with_threads(2).expect("a CPU")
}

#[test]
fn integers_saturate() -> Outcome {
    let device = cpu();
    let z = Tensor::from_slice(&[i64::MAX, i64::MIN, 5], &[3], &device)?;
    assert_eq!(z.cast(DType::I32)?.to_vec::<i32>()?, [i32::MAX, i32::MIN, 5]);
    Ok(())
}

#[test]
fn random_numbers_depend_on_seed_and_place_only() -> Outcome {
    let uniform = Distribution::Uniform { low: -1.0, high: 3.0 };
    let normal = Distribution::Normal { mean: 2.0, std: 0.5 };
    for distribution in [uniform, normal] {
        let draw = |n: usize, seed, offset, threads| {
            let device = Device::cpu_with_threads(threads)?;
            Tensor::random(&[n], distribution, seed, offset, DType::F64, &device)?.to_vec::<f64>()
        };
        let whole = draw(100_000, 3, 0, 1)?;
        assert_eq!(whole, draw(100_000, 3, 0, 7)?);
        assert_eq!(whole[1000..1100], draw(100, 3, 1000, 2)?);
        assert_ne!(whole[..100], draw(100, 4, 0, 1)?);
        let mean = whole.iter().sum::<f64>() / 1e5;
        let variance = whole.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1e5;
        // Five standard errors of the mean, and of the variance of the wider of the two.
        let (m, v) = if distribution == uniform { (1.0, 16.0 / 12.0) } else { (2.0, 0.25) };
        assert!((mean - m).abs() < 5.0 * (v / 1e5f64).sqrt(), "{mean}");
        assert!((variance / v - 1.0).abs() < 5.0 * (2.0 / 1e5f64).sqrt(), "{variance}");
    }
    let device = cpu();
    assert!(Tensor::random(&[3], Distribution::Uniform { low: 1.0, high: 1.0 }, 0, 0, DType::F32, &device).is_err());
    assert!(Tensor::random(&[3], Distribution::Normal { mean: 0.0, std: -1.0 }, 0, 0, DType::F32, &device).is_err());
    assert!(Tensor::random(&[3], normal, 0, 0, DType::BF16, &device).is_err());
    Ok(())
}

#[test]
fn norms_of_nan_and_bounds_of_nothing() -> Outcome {
    assert!(Tensor::full(&[3], f64::NAN, DType::F32, &cpu())?.global_norm(1.0)?.0.item()?.is_nan());
    assert!(Tensor::zeros(&[3], DType::F32, &cpu())?.global_norm(0.0).is_err());
    Ok(())
}

#[test]
fn mistakes_are_errors_that_name_them() -> Outcome {
    let device = cpu();
    let other = cpu();
    let f = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &device);
    let message = |e: Result<Tensor, Error>| e.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(message(f(&[2, 3])?.matmul(&f(&[2, 3])?)).contains("[2, 3] @ [2, 3]"));
    assert!(message(f(&[2, 3])?.add(&f(&[4])?)).contains("[4]"));
    assert!(message(f(&[2])?.add(&Tensor::zeros(&[2], DType::F64, &device)?)).contains("f64"));
    assert!(message(f(&[2])?.add(&Tensor::zeros(&[2], DType::F32, &other)?)).contains("different devices"));
    assert!(message(f(&[2, 3])?.swiglu()).contains("even"));
    assert!(message(Tensor::zeros(&[2], DType::F16, &device)?.gelu()).contains("bf16, got f16"));
    let ids = |v: &[i32]| Tensor::from_slice(v, &[v.len(), 1], &device);
    assert!(message(f(&[4, 2])?.patch_embedding(&ids(&[0, 4])?)).contains("index 4 at position 1"));
    assert!(message(f(&[4, 2])?.patch_embedding(&ids(&[-100])?)).contains("-100"));
    let x = f(&[3, 3])?;
    assert!(matches!(x.t()?.matmul_into(&x, 1.0, Destination::write(&x)), Err(Error::Overlap { .. })));
    assert!(matches!(f(&[1, 3])?.broadcast_to(&[2, 3])?.fill_(1.0), Err(Error::Overlap { .. })));
    assert!(Tensor::empty(&[1 << 40, 1 << 10], DType::F32, &device).is_err());
    assert!(Device::cpu_with_threads(0).is_err());
    Ok(())
}
