//! Single primitives without a graph: products at the sizes of training in the three forms of a linear layer, long attention and
//! the head with its loss, in f32 and in bf16; in f32 what is bound by memory on working sets far beyond the caches (at least four times a
//! last-level cache of 48 MiB), each with its share of the roofline.

use criterion::{Criterion, criterion_group, criterion_main};
use patchgpt_autograd::Result;
use patchgpt_benches::{Roofline, Run, adamw, random};
use patchgpt_tensor::{Binary, DType, Destination, Device, ScatterIndex, Tensor, Unary};

/// A primitive over tensors made on a device.
type Build = fn(&Device) -> Result<Run>;

/// Random numbers in `dtype`.
fn random_in(dtype: DType, shape: &[usize], device: &Device) -> Result<Tensor> {
    Ok(random(shape, device)?.cast(dtype)?)
}

/// `x W^T`, `d_y W` and `d_y^T x` of a linear layer: m rows, k inputs, n outputs; the gradient of the weight is kept in f32.
fn products(criterion: &mut Criterion, roofline: &Roofline, dtype: DType) {
    let mut group = criterion.benchmark_group(format!("matmul {dtype}"));
    group.sample_size(20);
    for (m, k, n) in [(256, 768, 768), (512, 768, 3072), (1024, 1024, 1024), (512, 768, 32_000)] {
        let tensors = move |device: &Device| -> Result<[Tensor; 3]> {
            let random = |shape: [usize; 2]| random_in(dtype, &shape, device);
            Ok([random([m, k])?, random([n, k])?, random([m, n])?])
        };
        roofline.bench(&mut group, &format!("{m}x{k}x{n} forward"), &|device| {
            let [x, w, y] = tensors(device)?;
            Ok(Box::new(move || Ok(x.matmul_into(&w.t()?, 1.0, Destination::write(&y))?)))
        });
        roofline.bench(&mut group, &format!("{m}x{k}x{n} input gradient"), &|device| {
            let [x, w, y] = tensors(device)?;
            Ok(Box::new(move || Ok(y.matmul_into(&w, 1.0, Destination::write(&x))?)))
        });
        roofline.bench(&mut group, &format!("{m}x{k}x{n} weight gradient"), &|device| {
            let [x, w, y] = tensors(device)?;
            let d_w = w.cast(DType::F32)?;
            Ok(Box::new(move || Ok(y.t()?.matmul_into(&x, 1.0, Destination::add(&d_w))?)))
        });
    }
    group.finish();
}

/// Attention B=1 H=8 T=2048 D=64.
fn attention(criterion: &mut Criterion, roofline: &Roofline, dtype: DType) {
    const SHAPE: [usize; 4] = [1, 2048, 8, 64];
    const SCALE: f64 = 0.125;
    let mut group = criterion.benchmark_group(format!("causal_attention {dtype}"));
    let random = |device: &Device| random_in(dtype, &SHAPE, device);
    group.sample_size(20);
    roofline.bench(&mut group, &format!("{SHAPE:?} forward"), &|device| {
        let x = random(device)?;
        Ok(Box::new(move || Ok(x.causal_attention(&x, &x, SCALE).map(drop)?)))
    });
    roofline.bench(&mut group, &format!("{SHAPE:?} backward"), &|device| {
        let (x, d_out) = (random(device)?, random(device)?);
        let saved = x.causal_attention(&x, &x, SCALE)?;
        let gradients = [random(device)?, random(device)?, random(device)?];
        Ok(Box::new(move || {
            let to = gradients.each_ref().map(Destination::write);
            Ok(x.causal_attention_backward(&x, &x, &saved, SCALE, &d_out, to)?)
        }))
    });
    group.finish();
}

/// The head and its loss, 1024 positions of width 768 over a vocabulary of 32000, both gradients.
fn head(criterion: &mut Criterion, roofline: &Roofline, dtype: DType) {
    const POSITIONS: usize = 1024;
    let mut group = criterion.benchmark_group(format!("linear_cross_entropy {dtype}"));
    group.sample_size(10);
    for k in [1, 4] {
        roofline.bench(&mut group, &format!("{POSITIONS}x768x32000, {k} targets"), &|device| {
            let [x, w] = [POSITIONS, 32_000].map(|rows| random_in(dtype, &[rows, 768], device));
            let (x, w) = (x?, w?);
            let ids: Vec<i32> = (0..POSITIONS * k).map(|i| (i * 7919 % 32_000) as i32).collect();
            let targets = Tensor::from_slice(&ids, &[POSITIONS, k], device)?;
            let weights = Tensor::full(&[k], 1.0, DType::F32, device)?;
            let scale = Tensor::scalar(1.0 / (POSITIONS * k) as f64, DType::F32, device)?;
            let (d_x, d_w) = (x.copy()?, Tensor::zeros(&[32_000, 768], DType::F32, device)?);
            Ok(Box::new(move || {
                let gradients = (Some(Destination::write(&d_x)), Some(Destination::add(&d_w)));
                x.linear_cross_entropy(&w, &targets, &weights, &scale, gradients.0, gradients.1)?;
                Ok(())
            }))
        });
    }
    group.finish();
}

/// Rows and columns of the working sets: 96 MiB a tensor.
const ROWS: usize = 32_768;
const WIDTH: usize = 768;

/// What memory bounds, and how it is built.
const STREAMS: &[(&str, Build)] = &[
    ("copy", |device| {
        let (x, out) = (random(&[ROWS, WIDTH], device)?, random(&[ROWS, WIDTH], device)?);
        Ok(Box::new(move || Ok(out.copy_(&x)?)))
    }),
    ("fill", |device| {
        let out = random(&[ROWS, WIDTH], device)?;
        Ok(Box::new(move || Ok(out.fill_(0.0)?)))
    }),
    ("unary exp", |device| {
        let x = random(&[ROWS, WIDTH], device)?;
        Ok(Box::new(move || Ok(x.unary(Unary::Exp).map(drop)?)))
    }),
    ("binary add", |device| {
        let (x, y) = (random(&[ROWS, WIDTH], device)?, random(&[ROWS, WIDTH], device)?);
        Ok(Box::new(move || Ok(x.binary(Binary::Add, &y).map(drop)?)))
    }),
    ("gelu", |device| {
        let x = random(&[ROWS, WIDTH], device)?;
        Ok(Box::new(move || Ok(x.gelu().map(drop)?)))
    }),
    ("gelu_backward", |device| {
        let (x, d_out, d_x) =
            (random(&[ROWS, WIDTH], device)?, random(&[ROWS, WIDTH], device)?, random(&[ROWS, WIDTH], device)?);
        Ok(Box::new(move || Ok(x.gelu_backward(&d_out, Destination::write(&d_x))?)))
    }),
    ("swiglu", |device| {
        let x = random(&[ROWS, WIDTH], device)?;
        Ok(Box::new(move || Ok(x.swiglu().map(drop)?)))
    }),
    ("swiglu_backward", |device| {
        let (x, d_out, d_x) =
            (random(&[ROWS, WIDTH], device)?, random(&[ROWS, WIDTH / 2], device)?, random(&[ROWS, WIDTH], device)?);
        Ok(Box::new(move || Ok(x.swiglu_backward(&d_out, Destination::write(&d_x))?)))
    }),
    ("rms_norm", |device| {
        let (x, w) = (random(&[ROWS, WIDTH], device)?, random(&[WIDTH], device)?);
        Ok(Box::new(move || Ok(x.rms_norm(&w, 1e-5).map(drop)?)))
    }),
    ("rms_norm_backward", |device| {
        let (x, w, d_out) =
            (random(&[ROWS, WIDTH], device)?, random(&[WIDTH], device)?, random(&[ROWS, WIDTH], device)?);
        let (saved, d_x, d_w) = (x.rms_norm(&w, 1e-5)?, random(&[ROWS, WIDTH], device)?, random(&[WIDTH], device)?);
        Ok(Box::new(move || {
            let (to_x, to_w) = (Some(Destination::write(&d_x)), Some(Destination::write(&d_w)));
            Ok(x.rms_norm_backward(&w, &saved.rstd, &d_out, to_x, to_w)?)
        }))
    }),
    ("layer_norm", |device| {
        let (x, w) = (random(&[ROWS, WIDTH], device)?, random(&[WIDTH], device)?);
        Ok(Box::new(move || Ok(x.layer_norm(&w, &w, 1e-5).map(drop)?)))
    }),
    ("layer_norm_backward", |device| {
        let (x, w, d_out) =
            (random(&[ROWS, WIDTH], device)?, random(&[WIDTH], device)?, random(&[ROWS, WIDTH], device)?);
        let saved = x.layer_norm(&w, &w, 1e-5)?;
        let (d_x, d_w, d_b) = (random(&[ROWS, WIDTH], device)?, random(&[WIDTH], device)?, random(&[WIDTH], device)?);
        Ok(Box::new(move || {
            let to = [&d_x, &d_w, &d_b].map(|tensor| Some(Destination::write(tensor)));
            Ok(x.layer_norm_backward(&w, &saved.mean, &saved.rstd, &d_out, to)?)
        }))
    }),
    ("patch_embedding_backward", |device| {
        let (d_out, d_table) = (random(&[ROWS, WIDTH], device)?, random(&[32_000, WIDTH], device)?);
        let ids: Vec<i32> = (0..ROWS).map(|i| (i * 7919 % 32_000) as i32).collect();
        let index = ScatterIndex::new(&ids, 32_000, device)?;
        Ok(Box::new(move || Ok(d_out.patch_embedding_backward(&index, 1, Destination::write(&d_table))?)))
    }),
    ("global_norm", |device| {
        let x = random(&[2 * ROWS * WIDTH], device)?;
        Ok(Box::new(move || Ok(x.global_norm(1.0).map(drop)?)))
    }),
    ("clipping and adamw", |device| adamw(ROWS * WIDTH, device)),
];

fn primitives(criterion: &mut Criterion) {
    for dtype in [DType::F32, DType::BF16] {
        let roofline = Roofline::cpu(dtype);
        products(criterion, &roofline, dtype);
        attention(criterion, &roofline, dtype);
        head(criterion, &roofline, dtype);
    }
    let roofline = Roofline::cpu(DType::F32);
    let mut group = criterion.benchmark_group(format!("memory [{ROWS}, {WIDTH}]"));
    group.sample_size(10);
    for (name, build) in STREAMS {
        roofline.bench(&mut group, name, build);
    }
    group.finish();
}

criterion_group!(benches, primitives);
criterion_main!(benches);
