//! A training step, forward, backward, clipping and AdamW, in both regimes: tokens per second of the `tiny` preset and of `bench-s`.
//! (`bench-m` runs where its name is given: `cargo bench -p patchgpt-benches --bench training_step -- bench-m`.)

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use patchgpt_models::config::Config;
use patchgpt_models::regime::Regime;
use patchgpt_models::{AdamW, AdamWSettings, Gpt, Result, TrainBatch};
use patchgpt_tensor::{DType, Device};

/// Tokens per position of a patch step.
const PATCH: usize = 4;

/// One optimizer step.
fn step(gpt: &Gpt, optimizer: &mut AdamW, batch: &TrainBatch) -> Result<f64> {
    gpt.parameters().zero_gradients()?;
    let loss = gpt.loss(batch, &batch.mean_scale()?)?;
    loss.backward()?;
    optimizer.step(gpt.parameters(), 1e-4, Some(1.0))?;
    Ok(loss.item()?)
}

fn training_steps(criterion: &mut Criterion) {
    let asked: Vec<String> = std::env::args().collect();
    for preset in ["tiny", "bench-s", "bench-m"] {
        if preset == "bench-m" && !asked.iter().any(|argument| argument.contains(preset)) {
            continue;
        }
        let config = Config::preset(preset).expect("a preset");
        let device = Device::cpu().expect("a CPU");
        let (sequences, positions) = (config.train.batch_size, config.train.seq_len);
        let mut group = criterion.benchmark_group(format!("training_step/{preset}"));
        group.sample_size(10);
        for regime in [Regime::token(), Regime::patch(PATCH)] {
            let gpt = Gpt::new(&config.model, DType::F32, &device, 1).expect("a model");
            let mut optimizer = AdamW::new(gpt.parameters(), AdamWSettings::default()).expect("an optimizer");
            let vocabulary = config.model.vocab_size as u64;
            // A multiplicative sequence: ids all over the vocabulary, the same in every run.
            let length = (sequences * regime.window_tokens(positions)) as u64;
            let tokens: Vec<i32> = (0..length)
                .map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33).rem_euclid(vocabulary) as i32)
                .collect();
            let batch = TrainBatch::from_windows(&tokens, sequences, &regime, &gpt).expect("a batch");
            let read = sequences * positions * regime.input_patch;
            group.throughput(Throughput::Elements(read as u64));
            group.bench_function(BenchmarkId::from_parameter(format!("K={}", regime.input_patch)), |b| {
                b.iter(|| black_box(step(&gpt, &mut optimizer, &batch).expect("a step")))
            });
        }
        group.finish();
    }
}

criterion_group!(benches, training_steps);
criterion_main!(benches);
