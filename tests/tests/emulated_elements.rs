//! The kernels over elements, reductions and flat storage on the emulated device, primitive by primitive, against the CPU.

use patchgpt_tensor::{
    AdamW, Binary, DType, Destination, Device, Distribution, Reduction, Result, Rounding, Tensor, Unary,
};
use patchgpt_tests::array::Array;
use patchgpt_tests::cuda::{device as emulated, variants};
use patchgpt_tests::side::{Rounded, check, compare, cpu, random};

/// Rows and widths: single elements, odd, multiples of packs, several packs a thread.
const SHAPES: [[usize; 2]; 6] = [[1, 1], [3, 8], [5, 33], [0, 8], [2, 1040], [37, 64]];

fn destination(tensor: &Tensor, accumulate: bool) -> Destination<'_> {
    Destination { tensor, accumulate }
}

#[test]
fn reductions() {
    let cases: [(&[usize], &[usize]); 9] = [
        (&[37, 64], &[1]),
        (&[37, 64], &[0]),
        (&[5, 33], &[0, 1]),
        (&[2, 3, 4, 8], &[1, 3]),
        (&[2, 3, 4, 8], &[0, 2]),
        (&[9000], &[0]),
        (&[700, 3], &[0]),
        (&[3, 17_000], &[1]),
        (&[0, 4], &[0]),
    ];
    for (shape, dims) in cases {
        for (reduction, accumulate) in [(Reduction::Sum, false), (Reduction::Sum, true), (Reduction::Max, false)] {
            check(emulated(), &format!("{reduction:?} of {shape:?} over {dims:?}"), shape.iter().product(), |s| {
                // Of one sign, so that a sum is of the size of what is rounded on the way to it.
                let mut x = random(shape, 1).rounded_to(s.numbers);
                x.data.iter_mut().for_each(|x| *x = x.abs());
                let x = s.rows(&x)?;
                let mut to = shape.to_vec();
                dims.iter().for_each(|&d| to[d] = 1);
                let (out, wide) = (s.out(&to, accumulate)?, s.statistic(&random(&to, 3))?);
                s.backend().reduce(destination(&out, accumulate), reduction, &x)?;
                s.backend().reduce(destination(&wide, accumulate), reduction, &x)?;
                Ok(vec![out, wide])
            });
        }
    }
}

#[test]
fn elementwise() {
    let unaries =
        [Unary::Neg, Unary::Exp, Unary::Tanh, Unary::Sigmoid, Unary::Square, Unary::Affine { mul: 1.5, add: -0.25 }];
    for shape @ [n, c] in SHAPES {
        check(emulated(), &format!("elementwise {shape:?}"), 4, |s| {
            let (x, y) = (random(&shape, 1).rounded_to(s.numbers), random(&shape, 2).rounded_to(s.numbers));
            let mut results = Vec::new();
            for op in unaries {
                let out = s.out(&shape, false)?;
                s.backend().unary(&out, op, &s.rows(&x)?)?;
                results.push(out);
            }
            let row = s.vector(&random(&[c], 3).rounded_to(s.numbers))?.broadcast_to(&shape)?;
            let column = s.vector(&random(&[n, 1], 4).rounded_to(s.numbers))?.broadcast_to(&shape)?;
            for op in [Binary::Add, Binary::Sub, Binary::Mul, Binary::Max, Binary::Min] {
                for (other, accumulate) in [(&s.rows(&y)?, true), (&row, false), (&column, false)] {
                    let out = s.out(&shape, accumulate)?;
                    s.backend().binary(destination(&out, accumulate), op, &s.rows(&x)?, other)?;
                    results.push(out);
                }
            }
            let in_place = s.rows(&x)?;
            s.backend().binary(Destination::write(&in_place), Binary::Mul, &in_place, &row)?;
            results.push(in_place);
            Ok(results)
        });
    }
}

#[test]
fn copies_and_fills_of_any_strides() -> Result<()> {
    let orders: [&[usize]; 4] = [&[0, 1, 2], &[0, 2, 1], &[2, 0, 1], &[2, 1, 0]];
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I32, DType::I64] {
        for shape in [[3, 40, 70], [2, 8, 16], [1, 5, 33]] {
            for order in orders {
                let on = |device: &Device| -> Result<Vec<f64>> {
                    let numbers = Array::from_fn(&shape, |i| (i % 113) as f64 - 50.0);
                    let x = Tensor::from_slice(&numbers.data, &shape, device)?.cast(dtype)?;
                    let turned = x.permute(order)?.copy()?;
                    turned.narrow(2, 0, 1)?.fill_(3.0)?;
                    turned.to_f64_vec()
                };
                assert_eq!(on(emulated())?, on(cpu())?, "{dtype} {shape:?} {order:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn casts_round_truncate_and_saturate() -> Result<()> {
    let dtypes = [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I32, DType::I64];
    let tie = |bits: i32| 1.0 + 2f64.powi(-bits);
    let values: Vec<f64> = vec![
        0.0,
        -2.9,
        2.9,
        100.0,
        f64::NAN,
        1e300,
        -1e300,
        65_504.0,
        tie(8),
        tie(8) + tie(8) - 1.0,
        tie(11),
        1e-6,
        -0.0,
    ];
    for from in dtypes {
        for to in dtypes {
            let on = |device: &Device| -> Result<Vec<u64>> {
                let x = Tensor::from_slice(&values, &[values.len()], device)?.cast(from)?.cast(to)?;
                let bits = |x: f64| if x.is_nan() { u64::MAX } else { x.to_bits() };
                Ok(x.to_f64_vec()?.into_iter().map(bits).collect())
            };
            assert_eq!(on(emulated())?, on(cpu())?, "{from} to {to}");
        }
    }
    // What lies just above a tie of two bf16 rounds up, also on the way from f64.
    let above = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
    let x = Tensor::from_slice(&[above], &[1], emulated())?.cast(DType::BF16)?;
    assert_eq!(x.to_f64_vec()?, [1.0 + 2f64.powi(-7)]);
    let z = Tensor::from_slice(&[i64::MAX, i64::MIN, 5], &[3], emulated())?;
    assert_eq!(z.cast(DType::I32)?.to_vec::<i32>()?, [i32::MAX, i32::MIN, 5]);
    Ok(())
}

#[test]
fn random_numbers_are_those_of_the_cpu() -> Result<()> {
    let uniform = Distribution::Uniform { low: -1.0, high: 3.0 };
    let narrow = Distribution::Uniform { low: 1.0, high: 1.0 + 1e-9 };
    let normal = Distribution::Normal { mean: 2.0, std: 0.5 };
    for distribution in [uniform, narrow, normal] {
        for dtype in [DType::F32, DType::F64] {
            let on = |device: &Device| {
                Tensor::random(&[3000], distribution, 9, u64::MAX - 1000, dtype, device)?.to_f64_vec()
            };
            assert_eq!(on(emulated())?, on(cpu())?, "{distribution:?} in {dtype}");
        }
    }
    Ok(())
}

#[test]
fn adamw_follows_the_cpu() -> Result<()> {
    for (dtype, n, start, decay_len) in
        [(DType::F32, 5003, 0, 64), (DType::F32, 17, 1, 17), (DType::F64, 1001, 0, 7), (DType::F32, 0, 0, 0)]
    {
        let run = |device: &Device, dtype| -> Result<Vec<Tensor>> {
            let flat = |seed: u64, positive: bool| -> Result<Tensor> {
                let mut a = random(&[n + start], seed).rounded_to(DType::F32);
                a.data.iter_mut().for_each(|x| *x = if positive { x.abs() } else { *x });
                Tensor::from_slice(&a.data, &a.shape, device)?.cast(dtype)?.narrow(0, start, n)
            };
            let (p, g, m, v) = (flat(1, false)?, flat(2, false)?, flat(3, false)?, flat(4, true)?);
            let scalar = |x: f64| Tensor::scalar(f64::from(x as f32), dtype, device);
            for step in [1, 2, 10] {
                AdamW {
                    parameters: &p,
                    gradients: &g,
                    first_moment: &m,
                    second_moment: &v,
                    learning_rate: &scalar(0.01)?,
                    clip: &scalar(0.5)?,
                    step: &Tensor::from_slice(&[step], &[], device)?,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e-8,
                    weight_decay: 0.1,
                    decay_len,
                    rounded: None,
                }
                .run()?;
            }
            Ok(vec![p, m, v])
        };
        for (choice, device) in variants("adamw") {
            for (i, (g, e)) in run(device, dtype)?.iter().zip(&run(cpu(), DType::F64)?).enumerate() {
                compare(&format!("{choice} of {n} in {dtype}, output {i}"), g, e, 1);
            }
        }
    }
    Ok(())
}

/// The rounded copy is of the updated parameters; what a variant does not round is refused before anything is written.
#[test]
fn adamw_rounds_what_it_has_updated() -> Result<()> {
    let n = 1003;
    for (choice, device) in variants("adamw") {
        for rounding in [Rounding::Nearest, Rounding::Stochastic { seed: 3 }] {
            let flat = |seed: u64| Tensor::from_slice(&random(&[n], seed).data, &[n], device)?.cast(DType::F32);
            let (p, g, m, v) = (flat(1)?, flat(2)?, flat(3)?, flat(4)?.unary(Unary::Square)?);
            let (before, step) = (p.to_f64_vec()?, 2);
            let [rounded, again] = [(); 2].map(|()| Tensor::zeros(&[n], DType::BF16, device));
            let (rounded, again) = (rounded?, again?);
            let update = AdamW {
                parameters: &p,
                gradients: &g,
                first_moment: &m,
                second_moment: &v,
                learning_rate: &Tensor::scalar(0.01, DType::F32, device)?,
                clip: &Tensor::scalar(1.0, DType::F32, device)?,
                step: &Tensor::from_slice(&[step], &[], device)?,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
                decay_len: n,
                rounded: Some(patchgpt_tensor::Rounded { tensor: &rounded, rounding }),
            };
            if choice == "adamw=composed" && rounding != Rounding::Nearest {
                let message = update.run().expect_err("an update that is not to be made").to_string();
                assert!(message.contains("does not round stochastically"), "{message}");
                assert_eq!(p.to_f64_vec()?, before, "{choice}");
                continue;
            }
            update.run()?;
            assert_ne!(p.to_f64_vec()?, before);
            patchgpt_tensor::Rounded { tensor: &again, rounding }.again(&p, step)?;
            assert_eq!(rounded.to_f64_vec()?, again.to_f64_vec()?, "{choice} {rounding:?}");
        }
    }
    Ok(())
}

#[test]
fn global_norm_and_clip() -> Result<()> {
    for (dtype, n, max) in [
        (DType::F64, 1001, 1.0),
        (DType::F32, 70_001, 1.0),
        (DType::F32, 1, 1e9),
        (DType::F32, 0, 1.0),
        (DType::F32, 40_000, f64::INFINITY),
    ] {
        let x = Array::random(&[n], 3.0, n as u64).rounded_to(dtype);
        let on = |device: &Device, dtype| -> Result<[f64; 2]> {
            let (norm, clip) = Tensor::from_slice(&x.data, &[n], device)?.cast(dtype)?.global_norm(max)?;
            Ok([norm.item()?, clip.item()?])
        };
        let (got, expected) = (on(emulated(), dtype)?, on(cpu(), DType::F64)?);
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() <= dtype.epsilon() * e, "{dtype} {n}: {g} instead of {e}");
        }
    }
    assert!(Tensor::full(&[3], f64::NAN, DType::F32, emulated())?.global_norm(1.0)?.1.item()?.is_nan());
    Ok(())
}

#[test]
fn maxima_propagate_nan() -> Result<()> {
    for (shape, dims) in [([5, 33], [1]), ([5, 33], [0]), ([64, 8], [0]), ([3, 3000], [1]), ([0, 3], [0])] {
        let mut x = random(&shape, 8).rounded_to(DType::F32);
        x.data.iter_mut().step_by(41).for_each(|x| *x = f64::NAN);
        let on = |device: &Device| -> Result<[Tensor; 3]> {
            let x = Tensor::from_slice(&x.data, &shape, device)?.cast(DType::F32)?;
            let one = Tensor::full(&[1], 0.5, DType::F32, device)?;
            Ok([x.max(&dims)?, x.binary(Binary::Max, &one)?, one.binary(Binary::Min, &x)?])
        };
        for (i, (g, e)) in on(emulated())?.iter().zip(&on(cpu())?).enumerate() {
            compare(&format!("maxima of {shape:?} over {dims:?}, output {i}"), g, e, 1);
        }
    }
    Ok(())
}
