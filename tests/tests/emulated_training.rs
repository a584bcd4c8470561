//! Whole optimizer steps of a GPT, in patches and in tokens, on the CUDA device under test (emulated, unless `PATCHGPT_TEST_CARD` names a card) beside the CPU.

use patchgpt_models::config::Config;
use patchgpt_models::regime::Regime;
use patchgpt_models::{AdamW, AdamWSettings, Gpt, TrainBatch};
use patchgpt_tensor::{DType, Device};

/// How far f32 losses of two devices may lie apart, relatively.
const F32_LOSSES: f64 = 2e-4;
/// The same in bf16, where every product of both devices rounds to 2^-9 and logits are bf16 on the device.
const BF16_LOSSES: f64 = 3e-2;

/// A GPT of two layers with grouped keys in the LLaMA dialect, of two in GPT-2's.
fn config(dialect: &str) -> Config {
    let mut config = Config::preset(if dialect == "gpt2" { "gpt2" } else { "tiny" }).expect("a preset");
    let model = &mut config.model;
    (model.layers, model.hidden, model.ffn, model.heads) = (2, 48, 80, 4);
    model.kv_heads = if dialect == "gpt2" { 4 } else { 2 };
    (model.vocab_size, model.max_positions) = (256, 32);
    config
}

/// Losses and gradient norms of some steps in each regime.
fn train(device: &Device, dialect: &str, dtype: DType) -> patchgpt_models::Result<Vec<[f64; 2]>> {
    let gpt = Gpt::new(&config(dialect).model, dtype, device, 42)?;
    let mut optimizer = AdamW::new(gpt.parameters(), AdamWSettings::default())?;
    let text = b"Shall I compare thee to a summer's day? Thou art more lovely and more temperate: rough winds do shake the darling buds of May";
    let tokens: Vec<i32> = text.iter().map(|&byte| byte.into()).collect();
    let mut out = Vec::new();
    for (regime, window) in [(Regime::patch(4), 56), (Regime::token(), 19)] {
        for step in 0..3 {
            let batch = TrainBatch::from_windows(&tokens[step..step + 2 * window], 2, &regime, &gpt)?;
            gpt.parameters().zero_gradients()?;
            let loss = gpt.loss(&batch, &batch.mean_scale()?)?;
            loss.backward()?;
            let norm = optimizer.step(gpt.parameters(), 1e-2, Some(1.0))?;
            out.push([loss.item()?, norm.item()?]);
        }
    }
    Ok(out)
}

/// Holds steps on the device under test against the same steps on the CPU, losses and norms to `allowed`, relatively.
fn follows_the_cpu(dtype: DType, allowed: f64) {
    let cpu = Device::cpu_with_threads(1).expect("a CPU");
    for dialect in ["llama", "gpt2"] {
        let expected = train(&cpu, dialect, dtype).expect("steps on the CPU");
        let got = train(patchgpt_tests::cuda::device(), dialect, dtype).expect("steps on the device");
        assert!(expected.last() < expected.first(), "{dialect} does not learn: {expected:?}");
        for (step, (e, g)) in expected.iter().zip(&got).enumerate() {
            for (what, (e, g)) in ["loss", "gradient norm"].iter().zip(e.iter().zip(g)) {
                let apart = (e - g).abs() / e;
                assert!(apart <= allowed, "{dialect} in {dtype}, step {step}: {what} {g} instead of {e}");
            }
        }
    }
}

#[test]
fn steps_in_both_regimes_follow_the_cpu() {
    follows_the_cpu(DType::F32, F32_LOSSES);
}

#[test]
fn steps_in_bf16_follow_the_cpu() {
    follows_the_cpu(DType::BF16, BF16_LOSSES);
}
