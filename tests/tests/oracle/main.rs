//! K = 1 is ordinary next-token training: held against a GPT written here with index loops, a plain embedding, windows
//! shifted by one and a loss of one target a position, in both dialects. It shares no code with the crates; gradients are held
//! against its central differences.

mod model;

use model::{Oracle, mean_loss};
use patchgpt_models::config::{Config, Dialect, ModelConfig};
use patchgpt_models::hub;
use patchgpt_models::regime::Regime;
use patchgpt_models::{Gpt, TrainBatch};
use patchgpt_tensor::{DType, Device};

const SEQUENCES: usize = 3;
const POSITIONS: usize = 7;

fn config(dialect: Dialect, tied_head: bool) -> ModelConfig {
    ModelConfig {
        dialect,
        layers: 2,
        hidden: 24,
        ffn: 20,
        heads: 6,
        kv_heads: if dialect == Dialect::Llama { 2 } else { 6 },
        vocab_size: 37,
        max_positions: 11,
        // Large enough for attention to be far from uniform.
        init_std: 0.4,
        tied_head,
        ..Config::preset("tiny").unwrap().model
    }
}

fn cases() -> [ModelConfig; 4] {
    [(Dialect::Llama, false), (Dialect::Llama, true), (Dialect::Gpt2, false), (Dialect::Gpt2, true)]
        .map(|(dialect, tied)| config(dialect, tied))
}

fn tokens() -> Vec<i32> {
    (0..SEQUENCES * (POSITIONS + 1)).map(|i| ((i * i * 5 + 3 * i) % 37) as i32).collect()
}

/// A model with no parameter left at 0 or 1, and the oracle with its values.
fn pair(config: &ModelConfig) -> (Gpt, Oracle) {
    let gpt = Gpt::new(config, DType::F64, &Device::cpu().unwrap(), 11).unwrap();
    for (i, parameter) in gpt.parameters().iter().enumerate() {
        if parameter.shape().len() == 1 {
            let values: Vec<f64> =
                (0..parameter.shape()[0]).map(|j| 0.7 + ((3 * i + 7 * j) % 10) as f64 * 0.05).collect();
            parameter.var().tensor().write_from(&values).unwrap();
        }
    }
    let named = hub::tensors(config).into_iter().map(|tensor| {
        let parameter = gpt.parameters().var(&tensor.parameter).unwrap().tensor();
        (tensor.name.clone(), tensor.view(parameter).unwrap().to_f64_vec().unwrap())
    });
    let oracle = Oracle { config: config.clone(), weights: named.collect() };
    (gpt, oracle)
}

#[test]
fn losses_of_one_token_a_position() {
    for config in cases() {
        let (gpt, oracle) = pair(&config);
        let tokens = tokens();
        let batch = TrainBatch::from_windows(&tokens, SEQUENCES, &Regime::patch(1), &gpt).unwrap();
        assert_eq!(batch.inputs().ids().shape(), [SEQUENCES, POSITIONS, 1]);
        let found = gpt.loss(&batch, &batch.mean_scale().unwrap()).unwrap().item().unwrap();
        let expected = mean_loss(&oracle, &tokens, POSITIONS + 1);
        assert!((found - expected).abs() < 1e-12 * expected, "{config:?}: {found} instead of {expected}");

        let logits = gpt.logits(batch.inputs().ids()).unwrap().to_vec::<f64>().unwrap();
        let expected: Vec<f64> = tokens
            .chunks_exact(POSITIONS + 1)
            .flat_map(|window| oracle.logits(&window[..POSITIONS]))
            .flatten()
            .collect();
        let largest = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        assert_eq!(logits.len(), expected.len());
        for (found, expected) in logits.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-12 * largest, "{found} instead of {expected}");
        }
    }
}

/// The gradient of every published tensor, against the slope of the oracle's loss along a random direction.
#[test]
fn gradients_are_the_slopes_of_the_oracle() {
    const STEP: f64 = 1e-6;
    for config in cases() {
        let (gpt, oracle) = pair(&config);
        let tokens = tokens();
        let batch = TrainBatch::from_windows(&tokens, SEQUENCES, &Regime::token(), &gpt).unwrap();
        gpt.loss(&batch, &batch.mean_scale().unwrap()).unwrap().backward().unwrap();
        for tensor in hub::tensors(&config) {
            let parameter = gpt.parameters().get(&tensor.parameter).unwrap();
            let gradient = parameter.view(gpt.parameters().gradients()).unwrap();
            let gradient = tensor.view(&gradient).unwrap().to_f64_vec().unwrap();
            let direction: Vec<f64> = (0..gradient.len()).map(|i| ((i * 29 + 11) % 17) as f64 / 8.0 - 1.0).collect();
            let moved = |by: f64| {
                let mut oracle = oracle.clone();
                let values = oracle.weights.get_mut(&tensor.name).unwrap();
                for (value, d) in values.iter_mut().zip(&direction) {
                    *value += by * d;
                }
                mean_loss(&oracle, &tokens, POSITIONS + 1)
            };
            let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let found: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let size: f64 = gradient.iter().zip(&direction).map(|(g, d)| (g * d).abs()).sum();
            assert!(size > 1e-9, "{}: no gradient", tensor.name);
            // Truncation is of order STEP^2, rounding of 1e-16 / STEP.
            assert!((found - slope).abs() < 1e-7 * size.max(1e-2), "{}: {found} instead of {slope}", tensor.name);
        }
    }
}
