//! The kernels over rows on the emulated device, primitive by primitive, against the CPU in f64: in f32, bf16 and f64, with aligned and unaligned
//! rows, gaps between rows, written and accumulated, and sizes at which launchers take another path.

use patchgpt_tensor::{
    Binary, DType, Destination, Device, IGNORE_INDEX, LinearCrossEntropy, Residual, Result, ScatterIndex, Tensor,
};
use patchgpt_tests::array::Array;
use patchgpt_tests::cuda::{device as emulated, variants};
use patchgpt_tests::side::{PLACES, Place, Rounded, Side, check, compare, compare_within, cpu, random};

/// Rows and widths: single elements, odd, multiples of packs, several packs a thread.
const SHAPES: [[usize; 2]; 6] = [[1, 1], [3, 8], [5, 33], [0, 8], [2, 1040], [37, 64]];

fn destination(tensor: &Tensor, accumulate: bool) -> Destination<'_> {
    Destination { tensor, accumulate }
}

#[test]
fn softmax() {
    for shape in SHAPES {
        for accumulate in [false, true] {
            check(emulated(), &format!("softmax {shape:?}"), shape[1], |s| {
                let (x, g) = (random(&shape, 1).rounded_to(s.numbers), random(&shape, 2).rounded_to(s.numbers));
                let y = s.out(&shape, false)?;
                s.backend().softmax(&y, &s.rows(&x)?)?;
                let probabilities = Array::from_fn(&shape, |i| 1.0 / (1 + i % 7) as f64).rounded_to(s.numbers);
                let d_x = s.out(&shape, accumulate)?;
                s.backend().softmax_backward(destination(&d_x, accumulate), &s.rows(&g)?, &s.rows(&probabilities)?)?;
                Ok(vec![y, d_x])
            });
        }
    }
}

#[test]
fn softmax_of_extremes() -> Result<()> {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    let rows = [
        [-inf, -inf, -inf, -inf],
        [-inf, 0.0, 1.0, -inf],
        [nan, 0.0, 1.0, 2.0],
        [1e4, -1e4, 0.0, 1e4],
        [3.0, inf, 0.0, 1.0],
    ];
    let x = Array { shape: vec![5, 4], data: rows.concat() };
    let on = |device| -> Result<Tensor> {
        let x = Tensor::from_slice(&x.data, &x.shape, device)?.cast(DType::F32)?;
        x.softmax()
    };
    compare("softmax", &on(emulated())?, &on(cpu())?, 4);
    Ok(())
}

#[test]
fn rms_norm() {
    for (choice, device) in variants("rms_norm") {
        for (shape @ [n, c], accumulate) in SHAPES.into_iter().flat_map(|s| [(s, false), (s, true)]) {
            check(device, &format!("{choice} {shape:?}"), n.max(c), |s| {
                let (x, g) = (random(&shape, 1).rounded_to(s.numbers), random(&shape, 2).rounded_to(s.numbers));
                let weight = s.vector(&random(&[c], 3).rounded_to(s.numbers))?;
                let (out, rstd) = (s.out(&shape, false)?, s.empty_statistic(n)?);
                s.backend().rms_norm(&out, &rstd, &s.rows(&x)?, None, &weight, 1e-5)?;
                let given = s.statistic(&Array::from_fn(&[n], |i| 1.0 + (i % 5) as f64))?;
                let (d_x, d_w) = (s.out(&shape, accumulate)?, s.statistic(&random(&[c], 4))?);
                s.backend().rms_norm_backward(
                    Some(destination(&d_x, accumulate)),
                    Some(destination(&d_w, accumulate)),
                    &s.rows(&g)?,
                    &s.rows(&x)?,
                    &weight,
                    &given,
                )?;
                let in_place = s.rows(&g)?;
                s.backend().rms_norm_backward(
                    Some(destination(&in_place, false)),
                    None,
                    &in_place,
                    &s.rows(&x)?,
                    &weight,
                    &given,
                )?;
                Ok(vec![out, rstd, d_x, d_w, in_place])
            });
        }
    }
}

#[test]
fn layer_norm() {
    for (choice, device) in variants("layer_norm") {
        for (shape @ [n, c], accumulate) in SHAPES.into_iter().flat_map(|s| [(s, false), (s, true)]) {
            check(device, &format!("{choice} {shape:?}"), n.max(c), |s| {
                let (x, g) = (random(&shape, 1).rounded_to(s.numbers), random(&shape, 2).rounded_to(s.numbers));
                let weight = s.vector(&random(&[c], 3).rounded_to(s.numbers))?;
                let bias = s.vector(&random(&[c], 5).rounded_to(s.numbers))?;
                let (out, mean, rstd) = (s.out(&shape, false)?, s.empty_statistic(n)?, s.empty_statistic(n)?);
                // A row of one element has no variance: eps alone keeps it finite.
                s.backend().layer_norm(&out, &mean, &rstd, &s.rows(&x)?, None, &weight, &bias, 0.1)?;
                let given = s.statistic(&Array::from_fn(&[n], |i| 1.0 + (i % 5) as f64))?;
                let means = s.statistic(&Array::from_fn(&[n], |i| (i % 3) as f64 / 4.0))?;
                let d_x = s.out(&shape, accumulate)?;
                let (d_w, d_b) = (s.statistic(&random(&[c], 4))?, s.statistic(&random(&[c], 6))?);
                s.backend().layer_norm_backward(
                    Some(destination(&d_x, accumulate)),
                    Some(destination(&d_w, accumulate)),
                    Some(destination(&d_b, accumulate)),
                    &s.rows(&g)?,
                    &s.rows(&x)?,
                    &weight,
                    &means,
                    &given,
                )?;
                Ok(vec![out, mean, rstd, d_x, d_w, d_b])
            });
        }
    }
}

/// The sum and its norm from one kernel have the bits of the two one after the other, also where rows do not fit in shared memory.
#[test]
fn norms_with_an_addend_are_sum_and_norm() {
    let types = [DType::F32, DType::BF16].into_iter().flat_map(|dtype| PLACES.map(|place| (dtype, place)));
    for (dtype, place) in types {
        for shape in SHAPES.into_iter().chain([[2, 50_000]]) {
            for (choice, device) in variants("rms_norm") {
                let side = Side { device, dtype, numbers: dtype, place };
                let [one, two] = [true, false].map(|fused| norm_of_sum(&side, shape, false, fused).expect("a norm"));
                assert_eq!(one, two, "{choice} {shape:?} {dtype} {place:?}");
            }
            for (choice, device) in variants("layer_norm") {
                let side = Side { device, dtype, numbers: dtype, place };
                let [one, two] = [true, false].map(|fused| norm_of_sum(&side, shape, true, fused).expect("a norm"));
                assert_eq!(one, two, "{choice} {shape:?} {dtype} {place:?}");
            }
        }
    }
}

/// Sum, norm and statistics, by one primitive or by two.
fn norm_of_sum(s: &Side, shape: [usize; 2], layer: bool, fused: bool) -> Result<Vec<Vec<f64>>> {
    let [n, c] = shape;
    let (x, addend) = (s.rows(&random(&shape, 1))?, s.rows(&random(&shape, 2))?);
    let (weight, bias) = (s.vector(&random(&[c], 3))?, s.vector(&random(&[c], 4))?);
    let (sum, out) = (s.out(&shape, false)?, s.out(&shape, false)?);
    let (mean, rstd) = (s.empty_statistic(n)?, s.empty_statistic(n)?);
    let (x, residual) = match fused {
        true => (&x, Some(Residual { addend: &addend, sum: &sum })),
        false => {
            s.backend().binary(Destination::write(&sum), Binary::Add, &x, &addend)?;
            (&sum, None)
        }
    };
    if layer {
        s.backend().layer_norm(&out, &mean, &rstd, x, residual, &weight, &bias, 0.1)?;
    } else {
        s.backend().rms_norm(&out, &rstd, x, residual, &weight, 1e-5)?;
        mean.fill_(0.0)?;
    }
    [&sum, &out, &mean, &rstd].into_iter().map(Tensor::to_f64_vec).collect()
}

/// More rows than blocks, so that a block walks down several; and rows too wide for shared memory.
#[test]
fn norms_of_many_and_of_wide_rows() {
    for [n, c] in [[1100, 24], [2, 50_000]] {
        let side = |device, dtype| Side { device, dtype, numbers: DType::BF16, place: Place::Dense };
        let run = |s: &Side| -> Result<Vec<Tensor>> {
            let (x, g) = (random(&[n, c], 1).rounded_to(DType::BF16), random(&[n, c], 2).rounded_to(DType::BF16));
            let weight = s.vector(&random(&[c], 3).rounded_to(DType::BF16))?;
            let given = s.statistic(&Array::from_fn(&[n], |i| 1.0 + (i % 5) as f64))?;
            let (x, g) = (s.rows(&x)?, s.rows(&g)?);
            let (out, rstd) = (s.out(&[n, c], false)?, s.empty_statistic(n)?);
            s.backend().rms_norm(&out, &rstd, &x, None, &weight, 1e-5)?;
            let d_x = s.out(&[n, c], false)?;
            let sums = [(); 3].map(|_| s.empty_statistic(c));
            let [d_w, d_v, d_b] = sums;
            let (d_w, d_v, d_b) = (d_w?, d_v?, d_b?);
            let (a, b) = (Some(Destination::write(&d_x)), Some(Destination::write(&d_w)));
            s.backend().rms_norm_backward(a, b, &g, &x, &weight, &given)?;
            let (v, b) = (Some(Destination::write(&d_v)), Some(Destination::write(&d_b)));
            s.backend().layer_norm_backward(None, v, b, &g, &x, &weight, &given, &given)?;
            Ok(vec![out, rstd, d_x, d_w, d_v, d_b])
        };
        let (got, expected) = (run(&side(emulated(), DType::BF16)), run(&side(cpu(), DType::F64)));
        for (i, (g, e)) in got.expect("a result").iter().zip(&expected.expect("a reference")).enumerate() {
            compare(&format!("norms of [{n}, {c}], output {i}"), g, e, n.max(c));
        }
    }
}

#[test]
fn gelu_and_swiglu() {
    for shape @ [n, c] in SHAPES {
        for accumulate in [false, true] {
            check(emulated(), &format!("gelu and swiglu {shape:?}"), 4, |s| {
                let wide = Array::random(&[n, 2 * c], 4.0, 1).rounded_to(s.numbers);
                let (x, g) =
                    (Array::random(&shape, 4.0, 3).rounded_to(s.numbers), random(&shape, 2).rounded_to(s.numbers));
                let (out, d_x) = (s.out(&shape, false)?, s.out(&shape, accumulate)?);
                s.backend().gelu(&out, &s.rows(&x)?)?;
                s.backend().gelu_backward(destination(&d_x, accumulate), &s.rows(&g)?, &s.rows(&x)?)?;
                let (product, d_wide) = (s.out(&shape, false)?, s.out(&[n, 2 * c], accumulate)?);
                s.backend().swiglu(&product, &s.rows(&wide)?)?;
                s.backend().swiglu_backward(destination(&d_wide, accumulate), &s.rows(&g)?, &s.rows(&wide)?)?;
                Ok(vec![out, d_x, product, d_wide])
            });
        }
    }
}

#[test]
fn rope() {
    for shape @ [_, t, _, d] in [[2, 3, 2, 2], [1, 5, 3, 16], [2, 4, 1, 80], [0, 2, 1, 4]] {
        for inverse in [false, true] {
            check(emulated(), &format!("rope {shape:?}"), 2, |s| {
                let x = random(&shape, 1).rounded_to(s.numbers);
                let tables = [3, 4].map(|seed| random(&[t, d / 2], seed).rounded_to(s.numbers));
                let (cos, sin) = (s.vector(&tables[0])?, s.vector(&tables[1])?);
                let out = s.out(&shape, false)?;
                s.backend().rope(&out, &s.rows(&x)?, &cos, &sin, inverse)?;
                let in_place = s.rows(&x)?;
                // Tables in the accumulator's type.
                let (cos, sin) = (s.statistic(&tables[0])?, s.statistic(&tables[1])?);
                s.backend().rope(&in_place, &in_place, &cos, &sin, inverse)?;
                Ok(vec![out, in_place])
            });
        }
    }
}

/// Targets [n, k] with repetitions, ignored ones and rows without a valid one.
fn targets(n: usize, v: usize, k: usize) -> Vec<i32> {
    (0..n * k)
        .map(|i| match (i / k) % 4 {
            3 => IGNORE_INDEX,
            1 if i % 3 == 0 => IGNORE_INDEX,
            2 => (v - 1) as i32,
            _ => (i * 7 % v) as i32,
        })
        .collect()
}

#[test]
fn cross_entropy() {
    for [n, v, k] in [[1, 1, 1], [5, 33, 3], [6, 64, 16], [0, 8, 2], [2, 1040, 40], [4, 9, 1]] {
        for accumulate in [false, true] {
            check(emulated(), &format!("cross_entropy [{n}, {v}] {k}"), v, |s| {
                let logits = Array::random(&[n, v], 8.0, 1).rounded_to(s.numbers);
                let ids = Tensor::from_slice(&targets(n, v, k), &[n, k], s.device)?;
                let weights = s.statistic(&Array::from_fn(&[k], |i| 1.0 / (i + 1) as f64).rounded_to(DType::F32))?;
                let (losses, lse) = (s.empty_statistic(n)?, s.empty_statistic(n)?);
                let x = s.rows(&logits)?;
                s.backend().cross_entropy(&losses, &lse, &x, &ids, &weights)?;
                let d_losses = s.statistic(&random(&[n], 5).rounded_to(DType::F32))?;
                let d = s.out(&[n, v], accumulate)?;
                s.backend().cross_entropy_backward(destination(&d, accumulate), &d_losses, &x, &lse, &ids, &weights)?;
                s.backend().cross_entropy_backward(Destination::write(&x), &d_losses, &x, &lse, &ids, &weights)?;
                Ok(vec![losses, lse, d, x])
            });
        }
    }
}

/// The head's loss by chunks: gradients in place of the logits.
#[test]
fn linear_cross_entropy() {
    for [n, c, v, k] in [[5, 8, 33, 3], [300, 8, 16, 2], [0, 4, 8, 1]] {
        let run = |s: &Side, accumulate: bool| -> Result<Vec<Tensor>> {
            let x = s.vector(&random(&[n, c], 1).rounded_to(s.numbers))?;
            let weight = s.vector(&random(&[v, c], 2).rounded_to(s.numbers))?;
            let ids = Tensor::from_slice(&targets(n, v, k), &[n, k], s.device)?;
            let target_weights = s.statistic(&Array::from_fn(&[k], |_| 1.0))?;
            let scale = Tensor::scalar(0.125, s.dtype.accumulator(), s.device)?;
            let losses = s.empty_statistic(n)?;
            let (d_x, d_w) = (s.out(&[n, c], accumulate)?, s.out(&[v, c], accumulate)?);
            let args = LinearCrossEntropy {
                x: &x,
                weight: &weight,
                targets: &ids,
                target_weights: &target_weights,
                scale: &scale,
                losses: &losses,
                d_x: Some(destination(&d_x, accumulate)),
                d_weight: Some(destination(&d_w, accumulate)),
            };
            s.backend().linear_cross_entropy(args)?;
            let alone = s.empty_statistic(n)?;
            s.backend().linear_cross_entropy(LinearCrossEntropy {
                losses: &alone,
                d_x: None,
                d_weight: None,
                ..args
            })?;
            assert_eq!(alone.to_f64_vec()?, losses.to_f64_vec()?, "losses with and without gradients");
            Ok(vec![losses, d_x, d_w])
        };
        for (dtype, accumulate) in [(DType::F32, false), (DType::F32, true), (DType::BF16, false), (DType::BF16, true)]
        {
            let side = |device, own| Side { device, dtype: own, numbers: dtype, place: Place::Dense };
            let expected = run(&side(cpu(), DType::F64), accumulate).expect("a reference");
            for (choice, device) in variants("cross_entropy") {
                let got = run(&side(device, dtype), accumulate).expect("a result");
                for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
                    let what = format!("linear_cross_entropy [{n}, {c}, {v}] in {dtype} with {choice}, output {i}");
                    match dtype {
                        // Logits, their gradient and sums over chunks are rounded on the way.
                        DType::BF16 => compare_within(&what, g, e, 0.02),
                        _ => compare(&what, g, e, n.max(v)),
                    }
                }
            }
        }
    }
}

/// A row that does not fit in shared memory is read twice.
#[test]
fn cross_entropy_of_a_large_vocabulary() -> Result<()> {
    let (n, v, k) = (1, 262_144, 2);
    let run = |device: &Device, dtype| -> Result<Vec<Tensor>> {
        let s = Side { device, dtype, numbers: DType::BF16, place: Place::Dense };
        let x = s.vector(&Array::random(&[n, 1], 1.0, 1).rounded_to(DType::BF16))?;
        let weight = s.vector(&Array::random(&[v, 1], 4.0, 2).rounded_to(DType::BF16))?;
        let ids = Tensor::from_slice(&[5, v as i32 - 1], &[n, k], device)?;
        let weights = s.statistic(&Array::from_fn(&[k], |_| 1.0))?;
        let (losses, d_w) = (s.empty_statistic(n)?, s.out(&[v, 1], false)?);
        device.backend().linear_cross_entropy(LinearCrossEntropy {
            x: &x,
            weight: &weight,
            targets: &ids,
            target_weights: &weights,
            scale: &Tensor::scalar(1.0, dtype.accumulator(), device)?,
            losses: &losses,
            d_x: None,
            d_weight: Some(Destination::write(&d_w)),
        })?;
        Ok(vec![losses, d_w])
    };
    for (i, (g, e)) in run(emulated(), DType::F32)?.iter().zip(&run(cpu(), DType::F64)?).enumerate() {
        compare(&format!("output {i}"), g, e, v);
    }
    Ok(())
}

#[test]
fn patch_embedding() {
    // Ids that fill segments, cross them, span several, and that do not occur.
    let ids = |n: usize, v: usize| -> Vec<i32> {
        (0..n).map(|i| if i % 3 == 0 { (v / 2) as i32 } else { ((i * 5 + i / 7) % (v - 1)) as i32 }).collect()
    };
    for [n, k, v, c] in [[1, 1, 2, 1], [30, 4, 9, 33], [300, 2, 40, 8], [7, 1, 100, 1040], [0, 2, 5, 8]] {
        for accumulate in [false, true] {
            check(emulated(), &format!("patch_embedding [{n}, {k}] of [{v}, {c}]"), n * k, |s| {
                let all = ids(n * k, v);
                let table = s.rows(&random(&[v, c], 1).rounded_to(s.numbers))?;
                let out = s.out(&[n, c], false)?;
                s.backend().patch_embedding(&out, &table, &Tensor::from_slice(&all, &[n, k], s.device)?)?;
                let index = ScatterIndex::new(&all, v, s.device)?;
                let d_out = s.rows(&random(&[n, c], 2).rounded_to(s.numbers))?;
                let d_table = s.out(&[v, c], accumulate)?;
                s.backend().patch_embedding_backward(destination(&d_table, accumulate), &d_out, &index, k)?;
                let sums = s.statistic(&random(&[v, c], 9))?;
                s.backend().patch_embedding_backward(destination(&sums, accumulate), &d_out, &index, k)?;
                Ok(vec![out, d_table, sums])
            });
        }
    }
}
