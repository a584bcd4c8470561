//! A training step as `patchgpt bench` makes it (fresh batches from the loader, forward, backward, clipping, AdamW), in both regimes and in every
//! dtype meant for training: tokens per second of `tiny`, `bench-s` (model S) and `bench-m` (model M).
//! Steps of `bench-m` take seconds each, so it runs where its name is given:
//! `cargo bench -p patchgpt-benches --bench training_step -- bench-m`. And what a step costs the host beside the calls of a driver (`-- host_of_a_step`):
//! on a device without elements, which computes nothing, each step made as it is and as the replay of a recorded one.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use patchgpt_models::benchmark::{Feed, Session};
use patchgpt_models::config::{Config, Device as DeviceName};
use patchgpt_models::data::{Batch, InvertedIndex, SplitMix64, WindowShape};
use patchgpt_models::planner::memory_model;
use patchgpt_models::train::Stepper;
use patchgpt_models::train::stages::StageName;
use patchgpt_models::{AdamW, AdamWSettings, Gpt};
use patchgpt_tensor::{DType, Device, Meta};

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

/// A batch at token level of random ids.
fn random_batch(config: &Config) -> Batch {
    let (rows, shape) = (config.model.vocab_size, WindowShape::token_level(config.train.seq_len));
    let sequences = config.train.batch_size;
    let mut random = SplitMix64::from_key(&[1]);
    let mut ids =
        || -> Vec<i32> { (0..sequences * shape.positions).map(|_| random.below(rows as u64) as i32).collect() };
    let (inputs, targets) = (ids(), ids());
    let index = InvertedIndex::new(&inputs, rows).expect("an index");
    let valid = targets.len();
    Batch {
        sequences,
        shape,
        inputs,
        targets,
        index,
        valid_targets: valid,
        valid_weight: valid as f64,
        bag_entropy: 0.0,
    }
}

fn host_of_a_step(criterion: &mut Criterion) {
    for preset in ["bench-s", "bench-m"] {
        let config = Config::preset(preset).expect("a preset");
        let batch = [random_batch(&config)];
        let mut group = criterion.benchmark_group(format!("host_of_a_step/{preset}"));
        for (name, graphs) in [("as it is", false), ("replayed", true)] {
            let device = Meta::new(memory_model(DeviceName::Cuda, 80 << 30)).device();
            let gpt = Gpt::zeros(&config.model, DType::BF16, &device).expect("a model");
            let mut optimizer = AdamW::new(gpt.parameters(), AdamWSettings::default()).expect("an optimizer");
            let mut stepper = Stepper::new(graphs);
            let mut step = || {
                stepper.step(&gpt, &mut optimizer, &batch, &[1.0], 1e-3, 1.0).expect("a step");
                stepper.host_time()
            };
            for _ in 0..2 {
                step();
            }
            group.bench_function(name, |bencher| bencher.iter(|| black_box(step())));
        }
        group.finish();
    }
}

criterion_group!(benches, training_steps, host_of_a_step);
criterion_main!(benches);
