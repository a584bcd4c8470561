//! Every op of the tests' case tables at training size, forward and forward with backward, in f32, with its share of the roofline.
//!
//! Sizes are those of the two models that speed is compared at. S: 2048 positions in sequences of 256, width 384, feed-forward
//! width 1536, vocabulary 8192. M: 1024 positions in sequences of 512, width 768, feed-forward width 2048, vocabulary 32000.

use std::rc::Rc;

use criterion::{Criterion, criterion_group, criterion_main};
use patchgpt_benches::{Roofline, forward, forward_backward};
use patchgpt_tensor::DType;
use patchgpt_tests::cases;

fn ops(criterion: &mut Criterion) {
    let roofline = Roofline::cpu(DType::F32);
    for (model, sizes) in [("S", [2048, 256, 384, 1536, 8192]), ("M", [1024, 512, 768, 2048, 32_000])] {
        let [positions, sequence, width, ffn, vocabulary] = sizes;
        for case in cases::training_size(positions, sequence, width, ffn, vocabulary) {
            let case = Rc::new(case);
            let mut group = criterion.benchmark_group(format!("{model}/{}", case.op));
            group.sample_size(20);
            let name = &case.name;
            roofline.bench(&mut group, &format!("{name} forward"), &|device| forward(&case, DType::F32, device));
            roofline.bench(&mut group, &format!("{name} forward and backward"), &|device| {
                forward_backward(&case, DType::F32, device)
            });
            group.finish();
        }
    }
}

criterion_group!(benches, ops);
criterion_main!(benches);
