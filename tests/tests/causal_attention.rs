//! Causal attention in bf16, on the CPU and on the emulated device by every variant of its kernels that takes a case: tiles of every
//! head size, ragged ends, more keys than queries, groups, strided and unaligned rows, gradients that are added to.
//!
//! Judged like FlashAttention: the error against f64 is at most twice that of the plain composition in bf16 (each
//! product and the softmax rounded to bf16), plus one ulp at the scale of the result. Every case runs under several
//! schedules of the emulator, with equal bits.

use patchgpt_cuda::Cuda;
use patchgpt_tensor::{DType, Destination, Device, Tensor};
use patchgpt_tests::array::{Array, Placement};
use patchgpt_tests::cuda::{device, device_with};

/// A number as bf16 holds it: rounded to nearest even.
fn bf16(x: f64) -> f64 {
    let bits = (x as f32).to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000).into()
}

fn exact(x: f64) -> f64 {
    x
}

/// How the rows of an input lie in memory.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Contiguous,
    /// [B, H, T, D] in memory.
    HeadsFirst,
    /// A part of wider rows, as q in joined projections: gaps of whole 16-byte units.
    Joined,
    /// Gaps that leave rows unaligned.
    Unaligned,
    /// The first entry of the batch for all.
    Repeated,
}
use Layout::{Contiguous, HeadsFirst, Joined, Repeated, Unaligned};

impl Layout {
    fn values(self, array: &Array) -> Array {
        match self {
            Repeated => Placement::Repeated.values(array),
            _ => array.clone(),
        }
    }

    fn place(self, array: &Array, dtype: DType, device: &Device) -> patchgpt_tensor::Result<Tensor> {
        let dense = Placement::Contiguous.place(array, dtype, device)?;
        match self {
            Contiguous => Ok(dense),
            HeadsFirst => dense.transpose(1, 2)?.copy()?.transpose(1, 2),
            Joined => {
                let mut shape = array.shape.clone();
                shape[3] += 64;
                let window = Tensor::full(&shape, f64::NAN, dtype, device)?.narrow(3, 32, array.shape[3])?;
                window.copy_(&dense)?;
                Ok(window)
            }
            Unaligned => Placement::Sliced.place(array, dtype, device),
            Repeated => Placement::Repeated.place(array, dtype, device),
        }
    }
}

/// Shapes of a case: q [B, T, H, D], k and v [B, S, G, D].
#[derive(Clone, Copy, Debug)]
struct Sizes {
    b: usize,
    t: usize,
    s: usize,
    h: usize,
    g: usize,
    d: usize,
}

fn sizes([b, t, s]: [usize; 3], [h, g, d]: [usize; 3]) -> Sizes {
    Sizes { b, t, s, h, g, d }
}

/// out, d_q, d_k, d_v with every intermediate matrix passed through `round`.
fn attention([q, k, v, d_out]: [&Array; 4], n: Sizes, scale: f64, round: fn(f64) -> f64) -> [Array; 4] {
    let [mut out, mut d_q] = [(); 2].map(|()| Array::zeros(&q.shape));
    let [mut d_k, mut d_v] = [(); 2].map(|()| Array::zeros(&k.shape));
    for (z, t, h) in (0..n.b).flat_map(|z| (0..n.t).flat_map(move |t| (0..n.h).map(move |h| (z, t, h)))) {
        let (g, seen) = (h / (n.h / n.g), t + n.s - n.t + 1);
        let dot = |a: &Array, b: &Array, s| (0..n.d).map(|i| a.at(&[z, t, h, i]) * b.at(&[z, s, g, i])).sum::<f64>();
        let scores: Vec<f64> = (0..seen).map(|s| round(scale * round(dot(q, k, s)))).collect();
        let max = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let p: Vec<f64> = scores.iter().map(|s| round((s - max).exp() / sum)).collect();
        let d_p: Vec<f64> = (0..seen).map(|s| round(dot(d_out, v, s))).collect();
        let delta: f64 = p.iter().zip(&d_p).map(|(p, d_p)| p * d_p).sum();
        let d_s: Vec<f64> = p.iter().zip(&d_p).map(|(p, d_p)| round(p * (d_p - delta)) * scale).collect();
        for i in 0..n.d {
            *out.at_mut(&[z, t, h, i]) = round((0..seen).map(|s| p[s] * v.at(&[z, s, g, i])).sum());
            *d_q.at_mut(&[z, t, h, i]) = round((0..seen).map(|s| d_s[s] * k.at(&[z, s, g, i])).sum());
            for s in 0..seen {
                *d_k.at_mut(&[z, s, g, i]) += d_s[s] * q.at(&[z, t, h, i]);
                *d_v.at_mut(&[z, s, g, i]) += p[s] * d_out.at(&[z, t, h, i]);
            }
        }
    }
    [&mut d_k, &mut d_v].into_iter().for_each(|a| a.data.iter_mut().for_each(|x| *x = round(*x)));
    [out, d_q, d_k, d_v]
}

/// A case of one precision: inputs, where they lie, and whether gradients are added to what is there.
struct Case {
    n: Sizes,
    scale: f64,
    layouts: [Layout; 3],
    accumulate: bool,
}

fn case(n: Sizes) -> Case {
    Case { n, scale: 1.0 / (n.d as f64).sqrt(), layouts: [Contiguous; 3], accumulate: false }
}

impl Case {
    fn inputs(&self) -> [Array; 4] {
        let Sizes { b, t, s, h, g, d } = self.n;
        let seed = (self.n.t * 31 + self.n.d) as u64;
        let array = |shape: [usize; 4], scale, i| {
            let mut array = Array::random(&shape, scale, seed + i);
            array.data.iter_mut().for_each(|x| *x = bf16(*x));
            array
        };
        [
            array([b, t, h, d], 2.0, 0),
            array([b, s, g, d], 2.0, 1),
            array([b, s, g, d], 1.0, 2),
            array([b, t, h, d], 1.0, 3),
        ]
    }

    /// out and gradients on a device; gradients start from ones if they are added to.
    fn run(&self, inputs: &[Array; 4], device: &Device) -> patchgpt_tensor::Result<[Array; 4]> {
        let dtype = DType::BF16;
        let place = |i: usize| self.layouts[i].place(&inputs[i], dtype, device);
        let (q, k, v, d_out) = (place(0)?, place(1)?, place(2)?, Contiguous.place(&inputs[3], dtype, device)?);
        let backend = device.backend();
        let empty = |x: &Tensor, value| Tensor::full(x.shape(), value, dtype, device);
        let out = empty(&q, f64::NAN)?;
        let lse = Tensor::empty(&[q.dim(0), q.dim(2), q.dim(1)], dtype.accumulator(), device)?;
        backend.causal_attention(&out, &lse, &q, &k, &v, self.scale)?;
        let before = if self.accumulate { 1.0 } else { f64::NAN };
        let (d_q, d_k, d_v) = (empty(&q, before)?, empty(&k, before)?, empty(&v, before)?);
        let [to_q, to_k, to_v] = [&d_q, &d_k, &d_v].map(|tensor| Destination { tensor, accumulate: self.accumulate });
        backend.causal_attention_backward(to_q, to_k, to_v, &d_out, &q, &k, &v, &out, &lse, self.scale)?;
        Ok([Array::of(&out)?, Array::of(&d_q)?, Array::of(&d_k)?, Array::of(&d_v)?])
    }

    /// Whether a variant is to take the case.
    fn is_for(&self, variant: &str) -> bool {
        let capability = device().downcast::<Cuda>().expect("CUDA").info().compute_capability;
        let mapped = !self.layouts.iter().any(|layout| matches!(layout, Unaligned | Repeated));
        match variant {
            "sm90" => {
                capability == (9, 0)
                    && (49..=128).contains(&self.n.d)
                    && self.n.d.is_multiple_of(8)
                    && mapped
                    && self.scale > 0.0
            }
            "sm80" => self.n.d <= 128 && self.scale > 0.0,
            _ => true,
        }
    }

    fn check(&self, variants: &[Choice]) -> Result<(), String> {
        let inputs = self.inputs();
        let values: Vec<Array> = (0..3).map(|i| self.layouts[i].values(&inputs[i])).collect();
        let values = [&values[0], &values[1], &values[2], &inputs[3]];
        let expected = attention(values, self.n, self.scale, exact);
        let plain = attention(values, self.n, self.scale, bf16);
        let cpu = Device::cpu_with_threads(2).map_err(|e| e.to_string())?;
        self.check_on(&cpu, &inputs, &expected, &plain).map_err(|message| format!("cpu: {message}"))?;
        for &(variant, choice) in variants {
            let device = device_with(choice);
            let result = match self.is_for(variant) {
                true => self.check_on(device, &inputs, &expected, &plain),
                false => match self.run(&inputs, device) {
                    Ok(_) => Err("is not to take this".into()),
                    Err(error) => {
                        error.to_string().contains("the chosen kernel").then_some(()).ok_or(error.to_string())
                    }
                },
            };
            result.map_err(|message| format!("{variant}: {message}"))?;
        }
        Ok(())
    }

    fn check_on(
        &self,
        device: &Device,
        inputs: &[Array; 4],
        expected: &[Array; 4],
        plain: &[Array; 4],
    ) -> Result<(), String> {
        let got = self.run(inputs, device).map_err(|e| e.to_string())?;
        for repeat in 0..2 {
            let again = self.run(inputs, device).map_err(|e| e.to_string())?;
            let bits = |all: &[Array; 4]| all.iter().flat_map(|a| &a.data).map(|x| x.to_bits()).collect::<Vec<_>>();
            if bits(&got) != bits(&again) {
                return Err(format!("another schedule ({repeat}) gives other bits"));
            }
        }
        let before = |which: usize| f64::from(u8::from(self.accumulate && which > 0));
        for (which, name) in ["out", "d_q", "d_k", "d_v"].into_iter().enumerate() {
            let (got, expected, plain) = (&got[which], &expected[which], &plain[which]);
            let before = before(which);
            let scale = expected.data.iter().fold(1e-3, |m: f64, x| m.max((x + before).abs()));
            let error = |a: &Array, before: f64| {
                let off = a.data.iter().zip(&expected.data).map(|(a, e)| (a - e - before).abs());
                off.fold(0.0, |m: f64, x| if x.is_nan() { f64::INFINITY } else { m.max(x) })
            };
            let (ours, theirs) = (error(got, before), error(plain, 0.0));
            if ours > 2.0 * theirs + scale * DType::BF16.epsilon() {
                return Err(format!(
                    "{name}: off by {ours:e} at the scale {scale:e}; the plain composition by {theirs:e}"
                ));
            }
        }
        Ok(())
    }
}

type Choice = (&'static str, &'static str);

/// The variants, and the choice of each.
const VARIANTS: [Choice; 4] = [
    ("sm90", "attention=sm90"),
    ("sm80", "attention=sm80"),
    ("portable", "attention=portable"),
    ("composed", "attention=composed"),
];

fn check(cases: Vec<Case>) {
    check_by(&VARIANTS, cases);
}

fn check_by(variants: &[Choice], cases: Vec<Case>) {
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|c| c.check(variants).err().map(|e| format!("{:?} {:?} scale {}: {e}", c.n, c.layouts, c.scale)))
        .collect();
    assert!(failures.is_empty(), "{} of {} cases failed:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn every_head_size_over_ragged_tiles() {
    let table = [
        ([1, 130, 130], [1, 1, 16]),
        ([1, 65, 67], [3, 1, 32]),
        ([1, 70, 70], [1, 1, 48]),
        ([1, 129, 200], [2, 1, 64]),
        ([1, 200, 330], [2, 1, 64]),
        ([1, 200, 200], [1, 1, 80]),
        ([1, 193, 209], [1, 1, 96]),
        ([1, 130, 260], [1, 1, 128]),
        ([2, 33, 70], [2, 2, 80]),
        ([1, 1, 130], [2, 2, 96]),
        ([1, 65, 65], [1, 1, 112]),
        ([1, 129, 129], [1, 1, 128]),
        ([1, 64, 64], [1, 1, 64]),
        ([3, 1, 1], [4, 2, 64]),
        // Rows that are no multiple of 16 bytes, heads between two tiles' sizes, and heads beyond those of tensor
        // cores.
        ([2, 19, 19], [2, 2, 20]),
        ([1, 35, 40], [2, 1, 72]),
        ([1, 20, 20], [1, 1, 160]),
    ];
    check(table.into_iter().map(|(n, h)| case(sizes(n, h))).collect());
}

#[test]
fn lengths_from_one_to_beyond_the_rings() {
    // Around the tiles of 64, 96, 128 and 192 rows, and far enough that stages are used again and again.
    let lengths = [1, 2, 63, 64, 65, 95, 96, 97, 127, 128, 129, 191, 192, 193, 385, 1025];
    let mut cases: Vec<Case> = lengths.iter().map(|&t| case(sizes([1, t, t], [1, 1, 64]))).collect();
    cases.extend([1, 97, 129, 513].map(|t| case(sizes([1, t, t], [1, 1, 128]))));
    // Groups of heads visit one head's keys: the ring goes on from head to head.
    cases.push(case(sizes([2, 70, 140], [6, 2, 64])));
    cases.push(case(sizes([1, 1, 1025], [2, 1, 96])));
    check_by(&VARIANTS[..1], cases);
}

#[test]
fn strided_rows_and_gradients_that_are_added_to() {
    let layouts = [
        [HeadsFirst, Contiguous, Joined],
        [Joined, Joined, Joined],
        [Contiguous, Unaligned, Contiguous],
        [Repeated, Contiguous, Repeated],
        [Contiguous; 3],
    ];
    let n = sizes([2, 21, 37], [2, 2, 64]);
    check(layouts.into_iter().map(|layouts| Case { layouts, accumulate: true, ..case(n) }).collect());
}

#[test]
fn scales_that_are_not_above_zero() {
    let n = sizes([1, 20, 20], [1, 1, 32]);
    check([-0.3, 0.0].into_iter().map(|scale| Case { scale, ..case(n) }).collect());
}

#[test]
fn keys_that_no_query_sees_get_zero_gradients() {
    let n = sizes([2, 0, 5], [2, 1, 64]);
    let got = case(n).run(&case(n).inputs(), device()).expect("gradients");
    assert!(got.iter().flat_map(|a| &a.data).all(|&x| x == 0.0) && got[2].data.len() == 2 * 5 * 64);
}
