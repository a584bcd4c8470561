//! Single ops in f64 and f32: values and gradients at small odd shapes, the K-target loss against the K-fold form of its authors.

use patchgpt_autograd::{Result, Var};
use patchgpt_tensor::{DType, Device, ScatterIndex, Tensor};
use patchgpt_tests::array::Array;
use patchgpt_tests::tolerance::{mismatch_above, relative};

use crate::fixture::Fixture;

const EPS: f64 = 1e-5;
const BASE: f64 = 10_000.0;

/// Holds `run` of the inputs of an op, and their gradients, against the transcript.
fn hold(name: &str, inputs: &[&str], reduction: usize, run: impl Fn(&[Var], &Fixture) -> Result<Var>) {
    let fixture = Fixture::open("ops.safetensors");
    let get = |part: &str| fixture.array(&format!("{name}.{part}"));
    let device = Device::cpu().unwrap();
    for dtype in [DType::F64, DType::F32] {
        let tensor = |x: &Array| Tensor::from_slice(&x.data, &x.shape, &device).unwrap().cast(dtype).unwrap();
        let vars: Vec<Var> = inputs.iter().map(|input| Var::parameter(tensor(&get(input)))).collect();
        let out = run(&vars, &fixture).unwrap_or_else(|error| panic!("{name}: {error}"));
        out.backward_with(&tensor(&get("d_out")).cast(out.dtype()).unwrap(), false).unwrap();
        let magnitude = inputs.iter().flat_map(|input| get(input).data).fold(0.0, |m: f64, x| m.max(x.abs()));
        let terms = get("d_out").data.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        // Both sides round, PyTorch in f64 and this library in `dtype`, which also rounds the inputs.
        let allowed = 2.0 * relative(dtype, reduction, magnitude);
        let close = |part: &str, found: &Tensor, floor: f64| {
            let found = Array::of(found).unwrap();
            if let Some(difference) = mismatch_above(&found, &get(part), allowed, floor) {
                panic!("{name}.{part} in {dtype}: {difference}");
            }
        };
        close("out", out.tensor(), 1e-3);
        for (input, var) in inputs.iter().zip(&vars) {
            close(&format!("d_{input}"), &var.gradient().unwrap(), terms);
        }
    }
}

#[test]
fn rows() {
    hold("rms_norm", &["x", "weight"], 15, |x, _| x[0].rms_norm(&x[1], EPS));
    hold("layer_norm", &["x", "weight", "bias"], 15, |x, _| x[0].layer_norm(&x[1], &x[2], EPS));
    hold("gelu", &["x"], 1, |x, _| x[0].gelu());
    hold("swiglu", &["x"], 1, |x, _| x[0].swiglu());
    hold("softmax", &["x"], 11, |x, _| x[0].softmax());
    hold("softmax.large", &["x"], 9, |x, _| x[0].softmax());
    hold("rope", &["x"], 2, |x, _| {
        let (cos, sin) = Tensor::rope_table(0, x[0].dim(1), x[0].dim(3), BASE, x[0].dtype(), x[0].tensor().device())?;
        x[0].rope(&cos, &sin)
    });
}

#[test]
fn products_and_attention() {
    hold("matmul", &["a", "b"], 7, |x, _| x[0].matmul(&x[1]));
    let attend = |x: &[Var], _: &Fixture| x[0].causal_attention(&x[1], &x[2], 1.0 / (x[0].dim(3) as f64).sqrt());
    hold("attention", &["q", "k", "v"], 14, attend);
    for head in [16, 64, 80, 96, 128] {
        hold(&format!("attention.{head}"), &["q", "k", "v"], head, attend);
    }
    // The log-sum-exp that the kernel keeps.
    let (fixture, device) = (Fixture::open("ops.safetensors"), Device::cpu().unwrap());
    let [q, k, v] = ["q", "k", "v"].map(|part| {
        let x = fixture.array(&format!("attention.{part}"));
        Tensor::from_slice(&x.data, &x.shape, &device).unwrap()
    });
    let lse = q.causal_attention(&k, &v, 1.0 / 6f64.sqrt()).unwrap().lse;
    let expected = fixture.array("attention.lse");
    let difference = mismatch_above(&Array::of(&lse).unwrap(), &expected, relative(DType::F64, 7, 4.0), 1e-3);
    assert_eq!(difference, None);
}

#[test]
fn embeddings() {
    for (name, patch) in [("embedding", 1), ("patch_embedding", 3)] {
        hold(name, &["table"], 30, |x, fixture| {
            let (shape, ids) = fixture.ids(&format!("{name}.ids"));
            let device = x[0].tensor().device();
            let index = ScatterIndex::new(&ids, x[0].dim(0), device)?;
            x[0].patch_embedding(&Tensor::from_slice(&ids, &[shape[0], shape[1] / patch, patch], device)?, &index)
        });
    }
}

/// `sum of losses * scale`, as the loss over rows of `logits` is in the transcripts.
fn loss(logits: &Var, (shape, targets): (Vec<usize>, Vec<i32>), weights: &[f64]) -> Result<Var> {
    let (device, dtype) = (logits.tensor().device(), logits.dtype());
    let valid = targets.iter().zip(weights.iter().cycle()).filter(|(t, _)| **t >= 0);
    let scale = 1.0 / valid.map(|(_, w)| w).sum::<f64>();
    let weights = Tensor::from_slice(weights, &[weights.len()], device)?.cast(dtype)?;
    let losses = logits.cross_entropy(&Tensor::from_slice(&targets, &shape, device)?, &weights)?;
    losses.sum_all()?.affine(scale, 0.0)
}

#[test]
fn cross_entropy_with_weights_and_ignored_targets() {
    for kind in ["uniform", "harmonic"] {
        let name = format!("cross_entropy.{kind}");
        hold(&name, &["logits"], 11, |x, fixture| {
            let weights = fixture.array(&format!("{name}.weights")).data;
            loss(&x[0], fixture.ids(&format!("{name}.targets")), &weights)
        });
    }
}

#[test]
fn k_targets_are_k_losses_of_one() {
    for k in ["1", "2", "3", "4", "8", "16", "large"] {
        let name = format!("k_fold.{k}");
        hold(&name, &["logits"], 13, |x, fixture| {
            let targets = fixture.ids(&format!("{name}.targets"));
            let weights = vec![1.0; targets.0[1]];
            loss(&x[0], targets, &weights)
        });
    }
}
