//! Training in bf16: weights and activations bf16, master weights, moments and gradients of weights f32.

use patchgpt_models::config::{Config, Dialect, ModelConfig};
use patchgpt_models::regime::Regime;
use patchgpt_models::{AdamW, AdamWSettings, Gpt, TrainBatch, hub};
use patchgpt_tensor::{DType, Device, Tensor};

const VOCABULARY: usize = 70;
const POSITIONS: usize = 16;
const SEQUENCES: usize = 4;

fn config(dialect: Dialect) -> ModelConfig {
    ModelConfig {
        dialect,
        layers: 2,
        hidden: 32,
        ffn: 48,
        heads: 4,
        kv_heads: if dialect == Dialect::Llama { 2 } else { 4 },
        vocab_size: VOCABULARY,
        max_positions: POSITIONS,
        init_std: 0.08,
        tied_head: dialect == Dialect::Gpt2,
        ..Config::preset("tiny").unwrap().model
    }
}

fn model(dialect: Dialect, dtype: DType, threads: usize) -> Gpt {
    Gpt::new(&config(dialect), dtype, &Device::cpu_with_threads(threads).unwrap(), 5).unwrap()
}

/// Windows of a sequence that can be learned: each token follows from the one before.
fn windows(regime: &Regime, step: usize) -> Vec<i32> {
    let length = regime.window_tokens(POSITIONS);
    let sequence = |s: usize| {
        (0..length).scan((step * 11 + s * 5) % VOCABULARY, |x, _| {
            *x = (*x * 3 + 1) % VOCABULARY;
            Some(*x as i32)
        })
    };
    (0..SEQUENCES).flat_map(sequence).collect()
}

/// Losses of the steps: patches first, then tokens.
fn train(gpt: &Gpt, steps: usize) -> Vec<f64> {
    let mut optimizer = AdamW::new(gpt.parameters(), AdamWSettings::default()).unwrap();
    let regimes = [Regime::patch(4), Regime::token()];
    (0..2 * steps)
        .map(|step| {
            let regime = &regimes[step / steps];
            let batch = TrainBatch::from_windows(&windows(regime, step), SEQUENCES, regime, gpt).unwrap();
            gpt.parameters().zero_gradients().unwrap();
            let loss = gpt.loss(&batch, &batch.mean_scale().unwrap()).unwrap();
            assert_eq!(loss.dtype(), DType::F32);
            loss.backward().unwrap();
            optimizer.step(gpt.parameters(), 3e-3, Some(1.0)).unwrap();
            loss.item().unwrap()
        })
        .collect()
}

#[test]
fn losses_follow_f32_in_both_dialects_and_regimes() {
    for dialect in [Dialect::Llama, Dialect::Gpt2] {
        let (narrow, wide) = (model(dialect, DType::BF16, 2), model(dialect, DType::F32, 2));
        assert_eq!(narrow.parameters().values().dtype(), DType::F32, "master weights");
        assert_eq!(narrow.head().dtype(), DType::BF16);
        let (a, b) = (train(&narrow, 40), train(&wide, 40));
        assert!(b[79] < 0.9 * b[40], "{dialect}: the f32 model learns: {} to {}", b[40], b[79]);
        for (step, (a, b)) in a.iter().zip(&b).enumerate() {
            assert!((a - b).abs() <= 0.03 * b, "{dialect}, step {step}: {a} in bf16, {b} in f32");
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let losses = |threads| train(&model(Dialect::Llama, DType::BF16, threads), 4);
    let one = losses(1);
    for threads in [2, 3, 7] {
        assert_eq!(one, losses(threads), "{threads} threads");
    }
}

#[test]
fn updates_smaller_than_the_spacing_of_bf16_are_kept_in_the_masters() {
    let gpt = model(Dialect::Llama, DType::BF16, 1);
    let parameters = gpt.parameters();
    let norm = parameters.get("model.norm.weight").unwrap();
    let master = || norm.view(parameters.values()).unwrap().to_f64_vec().unwrap();
    norm.view(parameters.gradients()).unwrap().fill_(1.0).unwrap();
    let mut optimizer = AdamW::new(parameters, AdamWSettings::default()).unwrap();
    for step in 1..=8 {
        // Each update is the learning rate, a fifth of what bf16 resolves below 1.
        optimizer.step(parameters, 2f64.powi(-8) / 5.0, None).unwrap();
        let expected = 1.0 - f64::from(step) * 2f64.powi(-8) / 5.0;
        assert!((master()[0] - expected).abs() < 1e-5, "step {step}: {}", master()[0]);
        let rounded = norm.var().tensor().to_f64_vec().unwrap()[0];
        assert_eq!(rounded, half::bf16::from_f64(master()[0]).to_f64(), "step {step}");
    }
}

#[test]
fn a_saved_model_holds_the_masters() {
    let gpt = model(Dialect::Gpt2, DType::BF16, 1);
    train(&gpt, 2);
    let folder = tempfile::tempdir().unwrap();
    hub::save(&gpt, folder.path()).unwrap();
    let device = gpt.device().clone();
    let wide = hub::load(folder.path(), DType::F32, &device).unwrap();
    let values = |gpt: &Gpt| gpt.parameters().values().to_f64_vec().unwrap();
    let [ours, theirs] = [&gpt, &wide].map(|gpt| {
        let named = |p: &patchgpt_models::parameters::Parameter| {
            p.view(gpt.parameters().values()).unwrap().to_f64_vec().unwrap()
        };
        gpt.parameters().iter().map(named).collect::<Vec<_>>()
    });
    assert_eq!(ours, theirs);
    let back = hub::load(folder.path(), DType::BF16, &device).unwrap();
    assert_eq!(values(&back), values(&gpt));
    let ids = Tensor::from_slice(&[1, 2, 3, 4, 5], &[1, 5, 1], &device).unwrap();
    assert_eq!(back.logits(&ids).unwrap().max_abs_diff(&gpt.logits(&ids).unwrap()).unwrap(), 0.0);
}

#[test]
fn cached_decoding_follows_the_whole_pass() {
    for dialect in [Dialect::Llama, Dialect::Gpt2] {
        let gpt = model(dialect, DType::BF16, 2);
        let tokens = [3, 14, 15, 9, 26, 5];
        let whole = Tensor::from_slice(&tokens, &[1, tokens.len(), 1], gpt.device()).unwrap();
        let whole = gpt.logits(&whole).unwrap().to_f64_vec().unwrap();
        let mut cache = gpt.cache(POSITIONS).unwrap();
        for (position, token) in tokens.iter().enumerate() {
            let cached = gpt.decode(&[*token], &mut cache).unwrap().to_f64_vec().unwrap();
            for (c, w) in cached.iter().zip(&whole[position * VOCABULARY..]) {
                assert!((c - w).abs() <= 0.02 * w.abs().max(1.0), "{dialect}, position {position}: {c} and {w}");
            }
        }
    }
}
