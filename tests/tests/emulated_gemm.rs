//! Products and linear layers by every variant of the family `gemm`, on the CUDA device under test (emulated, unless `PATCHGPT_TEST_CARD` names a card): all
//! cases of their tables against the naive reference, bf16 against the CPU in f64, and what the variants promise of their bits.

use patchgpt_autograd::{Var, recompute_cheap};
use patchgpt_tensor::{DType, Destination, Device, Linear, Result, Tensor};
use patchgpt_tests::array::Array;
use patchgpt_tests::cases::{self, Case};
use patchgpt_tests::conformance::{check, check_direct};
use patchgpt_tests::cuda::{device, device_with};
use patchgpt_tests::side::{PLACES, Place, Rounded, Side, compare, cpu, random};

/// The choices, and none.
const VARIANTS: [&str; 4] = ["", "gemm=lt", "gemm=lt_gelu", "gemm=blas"];

fn on(variant: &'static str) -> &'static Device {
    if variant.is_empty() { device() } else { device_with(variant) }
}

/// Whether a variant applies GELU within the product but cannot: an output of `width` is no multiple of 8.
fn refuses(variant: &str, gelu: bool, width: usize) -> bool {
    variant == "gemm=lt_gelu" && gelu && !width.is_multiple_of(8)
}

/// An error that says which kernel was chosen and is not for the problem.
fn is_refusal(message: &str) -> bool {
    message.contains("the chosen kernel lt_gelu is not for the product")
}

#[test]
fn every_variant_agrees_with_the_reference() {
    let ops = ["matmul", "linear", "linear_cross_entropy"];
    let (mut failures, mut refused) = (Vec::new(), 0);
    for variant in VARIANTS {
        for case in cases::all().into_iter().filter(|case| ops.contains(&case.op)) {
            let no_sums = |case: &Case| case.inputs.iter().any(|(array, _)| array.data.is_empty());
            let width = if case.op == "linear" { case.inputs[1].0.shape[0] } else { 0 };
            let refuses =
                refuses(variant, case.label().ends_with("and GELU") || case.label().contains("and GELU ["), width);
            match check(&case, DType::F32, on(variant)) {
                Ok(()) if refuses && !no_sums(&case) => {
                    failures.push(format!("{variant} is to refuse {}", case.label()))
                }
                Err(message) if refuses && is_refusal(&message) => refused += 1,
                Err(message) => failures.push(format!("{variant} {}: {message}", case.label())),
                Ok(()) => {}
            }
        }
        for case in cases::direct().into_iter().filter(|case| case.op == "matmul") {
            failures.extend(
                check_direct(&case, DType::F32, on(variant)).err().map(|e| format!("{variant} {}: {e}", case.label())),
            );
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(refused > 5, "the table has {refused} layers that lt_gelu does not take");
}

/// Rows, inputs, outputs: single numbers, odd ones, whole packs, more than a tile.
const LAYERS: [[usize; 3]; 5] = [[1, 1, 1], [5, 7, 3], [3, 33, 24], [70, 40, 72], [4, 0, 8]];

/// A layer below the checked method: the sum, and GELU of it if it is wanted.
fn layer(side: &Side, [n, i, o]: [usize; 3], bias: bool, gelu: bool) -> Result<Vec<Tensor>> {
    let given = |shape: &[usize], seed| random(shape, seed).rounded_to(side.numbers);
    let (x, weight) = (side.rows(&given(&[n, i], 1))?, side.rows(&given(&[o, i], 2))?);
    // A bias that is no dense vector, and one that is.
    let wide = side.rows(&given(&[o, 2], 3))?;
    let strided = wide.narrow(1, 1, 1)?.reshape(&[o])?;
    let bias = bias
        .then(|| if matches!(side.place, Place::Dense) { strided.contiguous() } else { Ok(strided) })
        .transpose()?;
    let out = |_| Tensor::full(&[n, o], f64::NAN, side.dtype, side.device);
    let (out, activated) = (out(0)?, if gelu { Some(out(1)?) } else { None });
    side.backend().linear(Linear {
        out: &out,
        activated: activated.as_ref(),
        x: &x,
        weight: &weight,
        bias: bias.as_ref(),
    })?;
    Ok([Some(out), activated].into_iter().flatten().collect())
}

#[test]
fn layers_in_bf16_and_f32_agree_with_f64() {
    for variant in VARIANTS {
        for (dtype, place) in PLACES.iter().flat_map(|&place| [(DType::F32, place), (DType::BF16, place)]) {
            for (sizes, bias, gelu) in
                LAYERS.iter().flat_map(|&s| [(s, false, false), (s, true, false), (s, false, true), (s, true, true)])
            {
                let what = format!("{variant} {sizes:?} in {dtype}, {place:?}, bias {bias}, gelu {gelu}");
                let got = layer(&Side { device: on(variant), dtype, numbers: dtype, place }, sizes, bias, gelu);
                // Rows of bf16 at odd places are at multiples of 2 bytes, which the emulated library takes nowhere.
                let odd = dtype == DType::BF16 && matches!(place, Place::Odd) && sizes[1] > 0;
                let got = match got {
                    Err(error) => {
                        let message = error.to_string();
                        let named =
                            matches!(variant, "gemm=lt" | "gemm=lt_gelu") && message.contains("the chosen kernel lt");
                        let expected = (odd && named) || (refuses(variant, gelu, sizes[2]) && is_refusal(&message));
                        assert!(expected, "{what}: {message}");
                        continue;
                    }
                    Ok(_) if refuses(variant, gelu, sizes[2]) && sizes[1] > 0 => panic!("{what} is to be refused"),
                    Ok(got) => got,
                };
                let reference = Side { device: cpu(), dtype: DType::F64, numbers: dtype, place: Place::Dense };
                let expected = layer(&reference, sizes, bias, gelu).expect("a reference");
                compare(&format!("{what}, sum"), &got[0], &expected[0], sizes[1] + 1);
                if gelu {
                    // Two roundings: that of the sum, on which GELU has slope 1.13 at most, and its own.
                    let [got, expected] = [&got[1], &expected[1]].map(|t| Array::of(t).expect("numbers").data);
                    let scale = expected.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
                    let allowed = if dtype == DType::BF16 { 2f64.powi(-7) } else { 1e-5 } * scale;
                    let worst = got.iter().zip(&expected).map(|(g, e)| (g - e).abs()).fold(0.0, f64::max);
                    assert!(worst <= allowed && got.iter().all(|x| x.is_finite()), "{what}: gelu is off by {worst}");
                }
            }
        }
    }
}

/// A weight's gradient: bf16 factors, one of them transposed, added in f32 to what two passes before have left.
#[test]
fn gradients_of_weights_accumulate_in_f32() {
    let (d_y, x) = (random(&[37, 24], 1).rounded_to(DType::BF16), random(&[37, 40], 2).rounded_to(DType::BF16));
    let gradient = |side: &Side, passes: usize| -> Result<Tensor> {
        let d_weight = Tensor::full(&[24, 40], 1e3, side.dtype.accumulator(), side.device)?;
        for _ in 0..passes {
            side.rows(&d_y)?.t()?.matmul_into(&side.rows(&x)?, 1.0, Destination::add(&d_weight))?;
        }
        Ok(d_weight)
    };
    for variant in VARIANTS {
        for place in [Place::Dense, Place::Aligned] {
            let ours = Side { device: on(variant), dtype: DType::BF16, numbers: DType::BF16, place };
            let reference = Side { device: cpu(), dtype: DType::F64, numbers: DType::BF16, place: Place::Dense };
            for passes in [1, 3] {
                let (got, expected) =
                    (gradient(&ours, passes).expect("a gradient"), gradient(&reference, passes).expect("a gradient"));
                assert_eq!(got.dtype(), DType::F32);
                // A sum in bf16 would be off by 4 beside 1000.
                compare(&format!("{variant}, {place:?}, {passes} passes"), &got, &expected, 37 * passes);
            }
        }
    }
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    tensor.to_f64_vec().expect("numbers").iter().map(|x| x.to_bits()).collect()
}

/// Output, and gradients of x and of both weights, of a layer with GELU and one behind it, in bf16.
fn network(variant: &'static str, cheap: bool) -> Vec<Vec<u64>> {
    let device = on(variant);
    let parameter = |shape: &[usize], seed| {
        let values = random(shape, seed).rounded_to(DType::BF16);
        let tensor = Tensor::from_slice(&values.data, shape, device).and_then(|t| t.cast(DType::BF16));
        Var::parameter(tensor.expect("a tensor"))
    };
    let all = [parameter(&[9, 40], 1), parameter(&[64, 40], 2), parameter(&[64], 3), parameter(&[16, 64], 4)];
    let [x, up, bias, down] = &all;
    let forward = || x.linear_gelu(up, Some(bias))?.linear(down, None);
    let y = if cheap { recompute_cheap(forward) } else { forward() }.expect("an output");
    y.square().and_then(|y| y.sum_all()).and_then(|loss| loss.backward()).expect("gradients");
    let gradients = all.iter().map(|v| bits(&v.gradient().expect("a gradient")));
    std::iter::once(bits(y.tensor())).chain(gradients).collect()
}

#[test]
fn recomputation_keeps_the_bits_where_it_is_said_to() {
    for variant in ["", "gemm=lt", "gemm=blas"] {
        assert_eq!(network(variant, false), network(variant, true), "{variant}");
    }
    // GELU of the sum before it is rounded, and of the rounded one: what the description of the variant warns of.
    let (kept, remade) = (network("gemm=lt_gelu", false), network("gemm=lt_gelu", true));
    assert_eq!(kept[0], remade[0], "the output itself is made once");
    assert_ne!(kept[4], remade[4], "the gradient of the second weight is a product with GELU's output");
    // All variants but that one round the sum first.
    assert_eq!(network("", false)[0], network("gemm=lt", false)[0]);
    assert_ne!(network("gemm=lt", false)[0], kept[0]);
}
