//! Every op at training size, forward and forward with backward, in f32.
//!
//! Sizes are those of a small GPT: 2048 positions in sequences of 256, width 384, feed-forward width 1536, vocabulary 8192.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use patchgpt_benches::Prepared;
use patchgpt_tensor::{DType, Device};
use patchgpt_tests::cases;

fn ops(criterion: &mut Criterion) {
    let device = Device::cpu().expect("a CPU");
    for case in cases::training_size(2048, 256, 384, 1536, 8192) {
        let prepared = Prepared::new(case, DType::F32, &device).expect("a case that runs");
        let case = prepared.case();
        let mut group = criterion.benchmark_group(case.op);
        // A product is bound by arithmetic, everything else by memory.
        group.throughput(match case.op {
            "matmul" | "causal_attention" | "linear_cross_entropy" => Throughput::Elements(case.flops as u64),
            _ => Throughput::Bytes(case.bytes(DType::F32) as u64),
        });
        group.sample_size(20);
        group.bench_function(format!("{} forward", case.name), |b| {
            b.iter(|| prepared.forward().expect("a case that runs"))
        });
        group.bench_function(format!("{} forward and backward", case.name), |b| {
            b.iter(|| prepared.forward_backward().expect("a case that runs"))
        });
        group.finish();
    }
}

criterion_group!(benches, ops);
criterion_main!(benches);
