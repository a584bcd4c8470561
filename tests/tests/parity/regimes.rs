//! Logits, losses and gradients in every regime.

use patchgpt_models::config::Recompute;
use patchgpt_models::gpt::Inputs;
use patchgpt_models::hub;
use patchgpt_models::regime::Regime;
use patchgpt_models::{Gpt, TrainBatch};
use patchgpt_tensor::{DType, Tensor};

use crate::fixture::{Fixture, array, assert_close, assert_scalar, gradient, model, tolerance};

const MODELS: [&str; 3] = ["llama", "llama_tied", "gpt2"];
const DTYPES: [DType; 2] = [DType::F64, DType::F32];

const TOKEN_POSITIONS: usize = 8;
const PATCH_POSITIONS: usize = 6;
const PATCH: usize = 4;

/// The first `len` tokens of every row.
fn firsts((shape, ids): &(Vec<usize>, Vec<i32>), len: usize) -> Vec<i32> {
    ids.chunks_exact(shape[1]).flat_map(|row| &row[..len]).copied().collect()
}

fn loss(gpt: &Gpt, batch: &TrainBatch) -> patchgpt_autograd::Var {
    gpt.loss(batch, &batch.mean_scale().unwrap()).unwrap()
}

/// Runs backward and holds every gradient against those of `stage`.
fn check_gradients(gpt: &Gpt, batch: &TrainBatch, fixture: &Fixture, stage: &str) {
    gpt.parameters().zero_gradients().unwrap();
    let loss = loss(gpt, batch);
    let relative = tolerance(gpt.dtype());
    assert_scalar(&format!("{stage}.loss"), loss.item().unwrap(), fixture.scalar(&format!("{stage}.loss")), relative);
    loss.backward().unwrap();
    for tensor in hub::tensors(gpt.config()) {
        let name = format!("{stage}.grad.{}", tensor.name);
        assert_close(&name, &gradient(gpt, &tensor), &fixture.array(&name), relative);
    }
}

fn check_stage(name: &str, dtype: DType, stage: &str, regime: Regime, positions: usize) {
    let (gpt, fixture) = (model(name, dtype), Fixture::open(&format!("{name}.safetensors")));
    let ids = fixture.ids(&format!("{stage}.ids"));
    let read = firsts(&ids, positions * regime.input_patch);
    let read = Tensor::from_slice(&read, &[2, positions, regime.input_patch], gpt.device()).unwrap();
    let logits = array(&gpt.logits(&read).unwrap());
    assert_close(name, &logits, &fixture.array(&format!("{stage}.logits")), tolerance(dtype));

    let batch = TrainBatch::from_windows(&ids.1, 2, &regime, &gpt).unwrap();
    assert_eq!(batch.inputs().ids().shape(), [2, positions, regime.input_patch]);
    check_gradients(&gpt, &batch, &fixture, stage);
    // Recomputed activations are the same numbers.
    let kept = gpt.parameters().gradients().to_f64_vec().unwrap();
    let mut gpt = gpt;
    for level in [Recompute::Cheap, Recompute::Blocks] {
        gpt = gpt.with_recompute(level);
        check_gradients(&gpt, &batch, &fixture, stage);
        assert_eq!(kept, gpt.parameters().gradients().to_f64_vec().unwrap());
    }
}

#[test]
fn token_level() {
    for name in MODELS {
        for dtype in DTYPES {
            check_stage(name, dtype, "token", Regime::token(), TOKEN_POSITIONS);
        }
    }
}

#[test]
fn patch_level() {
    for name in MODELS {
        for dtype in DTYPES {
            check_stage(name, dtype, "patch", Regime::patch(PATCH), PATCH_POSITIONS);
            let (gpt, fixture) = (model(name, dtype), Fixture::open(&format!("{name}.safetensors")));
            let batch = TrainBatch::from_windows(&fixture.ids("patch.ids").1, 2, &Regime::patch(PATCH), &gpt);
            let (shape, targets) = fixture.ids("patch.targets");
            assert_eq!(batch.unwrap().targets().to_vec::<i32>().unwrap(), targets);
            assert_eq!(shape, [2, PATCH_POSITIONS, PATCH]);
        }
    }
}

#[test]
fn ignored_targets() {
    for name in MODELS {
        for dtype in DTYPES {
            let (gpt, fixture) = (model(name, dtype), Fixture::open(&format!("{name}.safetensors")));
            let read = firsts(&fixture.ids("patch.ids"), PATCH_POSITIONS * PATCH);
            let vocabulary = gpt.config().vocab_size;
            let inputs = Inputs::new(&read, 2, PATCH_POSITIONS, vocabulary, gpt.device()).unwrap();
            let (_, targets) = fixture.ids("ignored.patch.targets");
            let batch = TrainBatch::with_targets(inputs, &targets, &[1.0; PATCH], dtype).unwrap();
            let ignored = targets.iter().filter(|&&target| target == -100).count();
            assert_eq!(ignored, 1 + 3 + 4);
            assert_eq!(batch.valid_weight(), (targets.len() - ignored) as f64);
            let found = loss(&gpt, &batch).item().unwrap();
            assert_scalar(name, found, fixture.scalar("ignored.patch.loss"), tolerance(dtype));
        }
    }
}

#[test]
fn gradients_of_logits_with_and_without_ignored_targets() {
    for name in MODELS {
        let fixture = Fixture::open(&format!("{name}.safetensors"));
        let device = patchgpt_tensor::Device::cpu().unwrap();
        let logits = fixture.array("patch.logits");
        let logits = Tensor::from_slice(&logits.data, &logits.shape, &device).unwrap();
        for case in ["patch", "ignored.patch"] {
            let (shape, targets) = fixture.ids(&format!("{case}.targets"));
            let valid = targets.iter().filter(|&&target| target != -100).count() as f64;
            let targets = Tensor::from_slice(&targets, &shape, &device).unwrap();
            let weights = Tensor::full(&[PATCH], 1.0, DType::F64, &device).unwrap();
            let parameter = patchgpt_autograd::Var::parameter(logits.clone());
            let losses = parameter.cross_entropy(&targets, &weights).unwrap();
            let loss = losses.sum_all().unwrap().affine(1.0 / valid, 0.0).unwrap();
            assert_scalar(case, loss.item().unwrap(), fixture.scalar(&format!("{case}.loss")), 1e-12);
            loss.backward().unwrap();
            let found = array(&parameter.gradient().unwrap());
            assert_close(case, &found, &fixture.array(&format!("{case}.d_logits")), 1e-12);
        }
    }
}

#[test]
fn patches_on_one_side_only() {
    for name in MODELS {
        for dtype in DTYPES {
            let (gpt, fixture) = (model(name, dtype), Fixture::open(&format!("{name}.safetensors")));
            let ids = fixture.ids("patch.ids");
            let input_only = Regime { target_patch: 1, ..Regime::patch(PATCH) };
            let output_only = Regime { input_patch: 1, ..Regime::patch(PATCH) };
            for (what, regime, tokens) in [("input_only.loss", input_only, 25), ("output_only.loss", output_only, 10)] {
                let batch = TrainBatch::from_windows(&firsts(&ids, tokens), 2, &regime, &gpt).unwrap();
                assert_eq!(batch.inputs().ids().dim(1), PATCH_POSITIONS);
                let found = loss(&gpt, &batch).item().unwrap();
                assert_scalar(what, found, fixture.scalar(what), tolerance(dtype));
            }
        }
    }
}
