//! A training step as `patchgpt bench` makes it (fresh batches from the loader, forward, backward, clipping, AdamW), in both regimes and in every
//! dtype meant for training: tokens per second of `tiny`, `bench-s` (model S) and `bench-m` (model M).
//! Steps of `bench-m` take seconds each, so it runs where its name is given:
//! `cargo bench -p patchgpt-benches --bench training_step -- bench-m`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use patchgpt_models::benchmark::{Feed, Session};
use patchgpt_models::config::Config;
use patchgpt_models::train::stages::StageName;
use patchgpt_tensor::Device;

/// Types of weights and activations; one that this build does not train in is left out.
const DTYPES: [&str; 2] = ["f32", "bf16"];

fn training_steps(criterion: &mut Criterion) {
    let asked: Vec<String> = std::env::args().collect();
    for preset in ["tiny", "bench-s", "bench-m"] {
        if preset == "bench-m" && !asked.iter().any(|argument| argument.contains(preset)) {
            continue;
        }
        let mut config = Config::preset(preset).expect("a preset");
        let device = Device::cpu().expect("a CPU");
        for dtype in DTYPES.into_iter().filter_map(|name| name.parse().ok()) {
            config.device.dtype = dtype;
            let mut group = criterion.benchmark_group(format!("training_step/{preset}/{dtype}"));
            group.sample_size(10);
            for regime in [StageName::Token, StageName::Patch] {
                // Made by the first sample, so that names that are filtered out cost nothing.
                let mut session: Option<(Session, Feed)> = None;
                let (positions, k) =
                    (config.train.batch_size * config.train.seq_len, config.train.patch_size.unwrap_or(1));
                let tokens = if regime == StageName::Patch { positions * k } else { positions };
                group.throughput(Throughput::Elements(tokens as u64));
                group.bench_function(BenchmarkId::from_parameter(regime), |bencher| {
                    let (session, feed) = session.get_or_insert_with(|| {
                        let session = Session::new(&config, &device).expect("a model");
                        (session, Feed::new(&config, regime).expect("batches"))
                    });
                    bencher.iter(|| black_box(session.step(feed).expect("a step")))
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, training_steps);
criterion_main!(benches);
