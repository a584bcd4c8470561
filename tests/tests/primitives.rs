//! Primitives that no gradient passes through: fill, copy and cast, random numbers, AdamW, the global norm.

use patchgpt_tensor::{AdamW, DType, Destination, Device, Distribution, Error, Tensor};
use patchgpt_tests::array::{Array, Placement};
use patchgpt_tests::reference::adamw::{Settings, norm, update};
use patchgpt_tests::reference::reduce;
use patchgpt_tests::tolerance;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn cpu() -> Device {
    Device::cpu_with_threads(2).expect("a CPU")
}

#[test]
fn fill_reaches_the_view_and_nothing_else() -> Outcome {
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I32, DType::I64] {
        let all = Tensor::zeros(&[4, 6], dtype, &cpu())?;
        all.narrow(1, 2, 3)?.fill_(7.0)?;
        let expected = Array::from_fn(&[4, 6], |i| if (2..5).contains(&(i % 6)) { 7.0 } else { 0.0 });
        assert_eq!(Array::of(&all)?, expected, "{dtype}");
    }
    Ok(())
}

#[test]
fn every_pair_of_dtypes_casts() -> Outcome {
    let dtypes = [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I32, DType::I64];
    let values: Vec<f64> = vec![0.0, 1.0, -2.0, 100.0, -3.0, 64.0];
    for from in dtypes {
        for to in dtypes {
            for placement in Placement::ALL {
                let array = Array { shape: vec![2, 3], data: values.clone() };
                // Integers have no NaN for the gaps of a sliced placement, where 0 stands.
                let x = placement.place(&array, DType::F64, &cpu())?.cast(from)?;
                assert_eq!(Array::of(&x.cast(to)?)?, placement.values(&array), "{from} to {to}, {placement:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn casts_round_to_nearest_even_truncate_and_saturate() -> Outcome {
    let device = cpu();
    let x = Tensor::from_slice(&[1.0 + 2f64.powi(-8), 1.0 + 3.0 * 2f64.powi(-8), f64::NAN, 1e300], &[4], &device)?;
    let bf16 = x.cast(DType::BF16)?.to_f64_vec()?;
    assert_eq!(bf16[..2], [1.0, 1.0 + 2f64.powi(-6)]);
    assert!(bf16[2].is_nan() && bf16[3] == f64::INFINITY);
    let y = Tensor::from_slice(&[2.9, -2.9, f64::NAN, 1e300, -1e300], &[5], &device)?;
    assert_eq!(y.cast(DType::I32)?.to_vec::<i32>()?, [2, -2, 0, i32::MAX, i32::MIN]);
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
fn adamw_follows_its_reference() -> Outcome {
    let device = cpu();
    for (dtype, n, decay_len) in
        [(DType::F64, 1000, 300), (DType::F32, 100_003, 64), (DType::F64, 1, 0), (DType::F32, 17, 17)]
    {
        let mut state = [1, 2, 3, 4].map(|seed| Array::random(&[n], 1.0, seed).rounded(dtype));
        state[3].data.iter_mut().for_each(|v| *v = v.abs());
        let tensors: Vec<Tensor> =
            state.iter().map(|a| Placement::Contiguous.place(a, dtype, &device)).collect::<Result<_, _>>()?;
        for step in [1, 2, 10] {
            let s = Settings {
                learning_rate: 0.01,
                clip: 0.5,
                step,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
                decay_len,
            };
            let scalar = |x: f64| Tensor::scalar(x, dtype, &device);
            AdamW {
                parameters: &tensors[0],
                gradients: &tensors[1],
                first_moment: &tensors[2],
                second_moment: &tensors[3],
                learning_rate: &scalar(s.learning_rate)?,
                clip: &scalar(s.clip)?,
                step: &Tensor::from_slice(&[step], &[], &device)?,
                beta1: s.beta1,
                beta2: s.beta2,
                eps: s.eps,
                weight_decay: s.weight_decay,
                decay_len,
            }
            .run()?;
            let [p, g, m, v] = &mut state;
            update(s, &mut p.data, &g.data, &mut m.data, &mut v.data);
        }
        for (tensor, expected) in tensors.iter().zip(&state) {
            let mismatch = tolerance::mismatch(&Array::of(tensor)?, expected, tolerance::relative(dtype, 1));
            assert!(mismatch.is_none(), "{dtype} {n}: {}", mismatch.unwrap_or_default());
        }
    }
    Ok(())
}

#[test]
fn the_global_norm_and_its_clip_factor() -> Outcome {
    for (dtype, n, max) in
        [(DType::F64, 1001, 1.0), (DType::F32, 300_000, 1.0), (DType::F32, 1, 1e9), (DType::F64, 0, 1.0)]
    {
        let x = Array::random(&[n], 3.0, n as u64).rounded(dtype);
        let (got, clip) = Placement::Contiguous.place(&x, dtype, &cpu())?.global_norm(max)?;
        let expected = norm(&x.data);
        let allowed = 4.0 * dtype.epsilon();
        assert!((got.item()? - expected).abs() <= allowed * expected, "{} {expected}", got.item()?);
        let factor = (max / (expected + 1e-6)).min(1.0);
        assert!((clip.item()? - factor).abs() <= allowed * factor, "{} {factor}", clip.item()?);
    }
    assert!(Tensor::full(&[3], f64::NAN, DType::F32, &cpu())?.global_norm(1.0)?.0.item()?.is_nan());
    assert!(Tensor::zeros(&[3], DType::F32, &cpu())?.global_norm(0.0).is_err());
    Ok(())
}

#[test]
fn maxima_propagate_nan() -> Outcome {
    for (shape, dims) in [(&[5, 33][..], &[1][..]), (&[5, 33], &[0]), (&[0, 3], &[0]), (&[2, 3, 4], &[0, 2])] {
        let mut x = Array::random(shape, 1.0, 8);
        if let Some(first) = x.data.first_mut() {
            *first = f64::NAN;
        }
        let got = Array::of(&Placement::Contiguous.place(&x, DType::F32, &cpu())?.max(dims)?)?;
        let expected = reduce::max(&x.rounded(DType::F32), dims);
        assert!(tolerance::mismatch(&got, &expected, 0.0).is_none(), "{got:?} {expected:?}");
    }
    Ok(())
}

#[test]
fn destinations_are_added_to_or_overwritten() -> Outcome {
    let device = cpu();
    let (a, b) = (Array::random(&[5, 7], 1.0, 1), Array::random(&[7, 3], 1.0, 2));
    let product = patchgpt_tests::reference::matmul::forward(&a, &b);
    let place = |x: &Array| Placement::Contiguous.place(x, DType::F64, &device);
    for placement in [Placement::Contiguous, Placement::Transposed, Placement::Sliced] {
        let start = Array::random(&[5, 3], 1.0, 3);
        let out = placement.place(&start, DType::F64, &device)?;
        place(&a)?.matmul_into(&place(&b)?, 2.0, Destination::add(&out))?;
        let expected = Array::from_fn(&[5, 3], |i| start.data[i] + 2.0 * product.data[i]);
        assert!(tolerance::mismatch(&Array::of(&out)?, &expected, 1e-14).is_none());
        out.fill_(f64::NAN)?;
        place(&a)?.matmul_into(&place(&b)?, 1.0, Destination::write(&out))?;
        assert!(tolerance::mismatch(&Array::of(&out)?, &product, 1e-14).is_none());
    }
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
    assert!(message(Tensor::zeros(&[2], DType::BF16, &device)?.gelu()).contains("bf16"));
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
