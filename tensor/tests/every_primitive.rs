//! Every primitive once, small and strided, on two threads: what f32 computes is what f64 computes, and destinations that accumulate hold
//! twice what was written. Small enough for Miri, which sees every unsafe block of the portable path here (`tests/miri.sh`).

use patchgpt_tensor::{
    AdamW, Binary, CausalAttention, DType, Destination, Device, Distribution, IGNORE_INDEX, Reduction, Result,
    ScatterIndex, Tensor, Unary,
};

/// Reproducible numbers in [0.25, 1.25) in a window of a larger, transposed buffer.
fn input(shape: &[usize], dtype: DType, device: &Device, seed: u64) -> Result<Tensor> {
    let mut wide = shape.to_vec();
    let rank = wide.len();
    if rank >= 2 {
        wide.swap(rank - 1, rank - 2);
    }
    wide[rank - 1] += 2;
    let uniform = Distribution::Uniform { low: 0.25, high: 1.25 };
    let all = Tensor::random(&wide, uniform, seed, 0, DType::F64, device)?.cast(dtype)?;
    let window = all.narrow(rank - 1, 1, wide[rank - 1] - 2)?;
    if rank >= 2 { window.t() } else { Ok(window) }
}

/// What a backward writes, and then adds, into memory of the shape of `like`: the sum is twice the first, which is returned.
fn twice(like: &Tensor, f: impl Fn(Destination) -> Result<()>) -> Result<Tensor> {
    let d = Tensor::full(like.shape(), f64::NAN, like.dtype(), like.device())?;
    f(Destination::write(&d))?;
    let once = d.copy()?;
    f(Destination::add(&d))?;
    let largest = once.to_f64_vec()?.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    assert!(d.max_abs_diff(&once.affine(2.0, 0.0)?)? <= 8.0 * like.dtype().epsilon() * largest);
    Ok(once)
}

/// The results of all primitives in `dtype`, by name.
fn everything(dtype: DType, device: &Device) -> Result<Vec<(&'static str, Tensor)>> {
    let mut results = Vec::new();
    let x = |shape: &[usize], seed| input(shape, dtype, device, seed);

    let (a, b) = (x(&[5, 7], 1)?, x(&[5, 7], 2)?);
    for op in
        [Unary::Neg, Unary::Exp, Unary::Log, Unary::Sqrt, Unary::Tanh, Unary::Sigmoid, Unary::Square, Unary::Recip]
    {
        results.push(("unary", a.unary(op)?));
    }
    for op in [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Max, Binary::Min] {
        results.push(("binary", a.binary(op, &b)?));
        results.push(("binary broadcast", a.binary(op, &b.narrow(0, 1, 1)?)?));
    }
    for dims in [&[0][..], &[1], &[0, 1]] {
        results.push(("sum", a.reduce(Reduction::Sum, dims)?));
        results.push(("max", a.reduce(Reduction::Max, dims)?));
    }
    results.push(("matmul", twice(&x(&[5, 5], 3)?, |d| a.matmul_into(&b.t()?, 0.5, d))?));
    results.push(("batched matmul", x(&[2, 3, 4], 4)?.matmul(&x(&[2, 4, 5], 5)?)?));
    results.push(("wide matmul", x(&[9, 20], 6)?.matmul(&x(&[20, 19], 7)?)?));
    let (sum, activated) = x(&[5, 7], 25)?.linear_gelu(&x(&[6, 7], 26)?, Some(&x(&[6], 27)?))?;
    results.extend([("linear", sum), ("linear with gelu", activated)]);

    let y = a.softmax()?;
    results.push(("softmax backward", twice(&a, |d| y.softmax_backward(&b, d))?));
    results.push(("gelu", a.gelu()?));
    results.push(("gelu backward", twice(&a, |d| a.gelu_backward(&b, d))?));
    let (gated, half) = (x(&[5, 6], 8)?, x(&[5, 3], 9)?);
    results.push(("swiglu", gated.swiglu()?));
    results.push(("swiglu backward", twice(&gated, |d| gated.swiglu_backward(&half, d))?));

    let (weight, bias) = (x(&[7], 10)?, x(&[7], 11)?);
    let norm = a.rms_norm(&weight, 1e-5)?;
    results.push(("rms_norm", norm.output));
    results.push(("rms_norm d_x", twice(&a, |d| a.rms_norm_backward(&weight, &norm.rstd, &b, Some(d), None))?));
    results.push(("rms_norm d_w", twice(&weight, |d| a.rms_norm_backward(&weight, &norm.rstd, &b, None, Some(d)))?));
    let norm = a.layer_norm(&weight, &bias, 1e-5)?;
    results.push(("layer_norm", norm.output));
    for (i, like) in [&a, &weight, &bias].into_iter().enumerate() {
        let gradient = twice(like, |d| {
            let mut gradients = [None; 3];
            gradients[i] = Some(d);
            a.layer_norm_backward(&weight, &norm.mean, &norm.rstd, &b, gradients)
        })?;
        results.push(("layer_norm backward", gradient));
    }

    let (q, k, v) = (x(&[1, 3, 2, 4], 12)?, x(&[1, 5, 1, 4], 13)?, x(&[1, 5, 1, 4], 14)?);
    let (cos, sin) = Tensor::rope_table(1, 3, 4, 100.0, dtype, device)?;
    results.push(("rope", q.rope(&cos, &sin, false)?));
    let attention: CausalAttention = q.causal_attention(&k, &v, 0.7)?;
    results.push(("causal_attention", attention.output.copy()?));
    let d_out = x(&[1, 3, 2, 4], 15)?;
    for (i, like) in [&q, &k, &v].into_iter().enumerate() {
        let gradient = twice(like, |d| {
            let unwanted: Vec<Tensor> =
                [&q, &k, &v].iter().map(|t| Tensor::empty(t.shape(), dtype, device)).collect::<Result<_>>()?;
            let gradients = [0, 1, 2].map(|j| if i == j { d } else { Destination::write(&unwanted[j]) });
            q.causal_attention_backward(&k, &v, &attention, 0.7, &d_out, gradients)
        })?;
        results.push(("causal_attention backward", gradient));
    }

    let ids = [4, 0, 4, 4, 2, 1];
    let (index, table) = (ScatterIndex::new(&ids, 5, device)?, x(&[5, 7], 16)?);
    let patches = Tensor::from_slice(&ids, &[3, 2], device)?;
    results.push(("patch_embedding", table.patch_embedding(&patches)?));
    let d_out = x(&[3, 7], 17)?;
    results.push(("patch_embedding backward", twice(&table, |d| d_out.patch_embedding_backward(&index, 2, d))?));

    let targets =
        Tensor::from_slice(&[3, IGNORE_INDEX, 0, 0, 6, 1, IGNORE_INDEX, IGNORE_INDEX, 2, 5], &[5, 2], device)?;
    let weights = Tensor::from_slice(&[1.0, 0.5], &[2], device)?.cast(dtype)?;
    let loss = a.cross_entropy(&targets, &weights)?;
    results.push(("cross_entropy", loss.losses.copy()?));
    let d_losses = x(&[5], 18)?;
    let gradient = twice(&a, |d| a.cross_entropy_backward(&loss.lse, &targets, &weights, &d_losses, d))?;
    results.push(("cross_entropy backward", gradient));
    let (rows, head, scale) = (x(&[5, 4], 19)?, x(&[7, 4], 20)?, Tensor::scalar(0.3, dtype, device)?);
    let fused = |gradients: [Option<Destination>; 2]| -> Result<Tensor> {
        let [d_x, d_weight] = gradients;
        rows.linear_cross_entropy(&head, &targets, &weights, &scale, d_x, d_weight)
    };
    results.push(("linear_cross_entropy", fused([None, None])?));
    results.push(("linear_cross_entropy d_x", twice(&rows, |d| fused([Some(d), None]).map(drop))?));
    results.push(("linear_cross_entropy d_w", twice(&head, |d| fused([None, Some(d)]).map(drop))?));

    let state = [21, 22, 23, 24].map(|seed| x(&[9], seed).and_then(|t| t.copy()));
    let [parameters, gradients, first_moment, second_moment] = state;
    let (parameters, first_moment, second_moment) = (parameters?, first_moment?, second_moment?);
    AdamW {
        parameters: &parameters,
        gradients: &gradients?,
        first_moment: &first_moment,
        second_moment: &second_moment,
        learning_rate: &Tensor::scalar(0.1, dtype, device)?,
        clip: &Tensor::scalar(0.5, dtype, device)?,
        step: &Tensor::from_slice(&[3], &[], device)?,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        decay_len: 4,
        rounded: None,
    }
    .run()?;
    let (norm, clip) = parameters.global_norm(0.5)?;
    results.extend([
        ("adamw", parameters),
        ("adamw m", first_moment),
        ("adamw v", second_moment),
        ("norm", norm),
        ("clip", clip),
    ]);
    Ok(results)
}

#[test]
fn every_primitive_computes_the_same_in_both_types() -> Result<()> {
    let device = Device::cpu_with_threads(2)?;
    let (double, single) = (everything(DType::F64, &device)?, everything(DType::F32, &device)?);
    assert_eq!(double.len(), single.len());
    for ((name, expected), (_, found)) in double.iter().zip(&single) {
        assert_eq!(expected.shape(), found.shape(), "{name}");
        let largest = expected.to_f64_vec()?.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        assert!(largest.is_finite() && largest > 0.0, "{name}");
        let difference = found.cast(DType::F64)?.max_abs_diff(expected)?;
        // f32 with a handful of roundings, through norms that divide by a standard deviation of a quarter.
        assert!(difference <= 1e-4 * largest, "{name}: {difference:e} of {largest:e}");
    }
    Ok(())
}

#[test]
fn casts_between_all_types_and_views() -> Result<()> {
    let device = Device::cpu_with_threads(2)?;
    let values: Vec<f64> = (0..35).map(|i| f64::from(i - 17)).collect();
    let x = Tensor::from_slice(&values, &[5, 7], &device)?;
    let types = [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I32, DType::I64];
    for from in types {
        for to in types {
            let wide = Tensor::zeros(&[7, 9], to, &device)?;
            let out = wide.narrow(1, 2, 5)?.t()?;
            out.copy_(&x.cast(from)?)?;
            assert_eq!(out.to_f64_vec()?, values, "{from} to {to}");
            let all: f64 = wide.to_f64_vec()?.iter().map(|v| v.abs()).sum();
            assert_eq!(all, values.iter().map(|v| v.abs()).sum(), "{from} to {to} wrote beside the view");
        }
    }
    Ok(())
}
