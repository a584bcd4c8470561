//! What holds for any model, whatever its weights: causality, cached decoding, gradients for every parameter, micro-batches, threads.

use patchgpt_models::config::{Config, Dialect, ModelConfig, Recompute};
use patchgpt_models::gpt::{Inputs, mean_scale};
use patchgpt_models::hub;
use patchgpt_models::regime::{Regime, TargetWeights};
use patchgpt_models::{AdamW, AdamWSettings, Gpt, TrainBatch};
use patchgpt_tensor::{DType, Device, Tensor};

const VOCABULARY: usize = 70;

fn config(dialect: Dialect) -> ModelConfig {
    ModelConfig {
        dialect,
        layers: 3,
        hidden: 32,
        ffn: 40,
        heads: 4,
        kv_heads: if dialect == Dialect::Llama { 2 } else { 4 },
        vocab_size: VOCABULARY,
        max_positions: 12,
        init_std: 0.2,
        tied_head: dialect == Dialect::Gpt2,
        ..Config::preset("tiny").unwrap().model
    }
}

fn model(dialect: Dialect, dtype: DType, threads: usize) -> Gpt {
    let device = Device::cpu_with_threads(threads).unwrap();
    Gpt::new(&config(dialect), dtype, &device, 5).unwrap()
}

const DIALECTS: [Dialect; 2] = [Dialect::Llama, Dialect::Gpt2];

fn ids(count: usize, seed: usize) -> Vec<i32> {
    (0..count).map(|i| ((i * i * 13 + 7 * i + seed * 31) % VOCABULARY) as i32).collect()
}

/// Logits of one sequence of patches of `k`, one vector a position.
fn logits(gpt: &Gpt, ids: &[i32], k: usize) -> Vec<Vec<f64>> {
    let ids = Tensor::from_slice(ids, &[1, ids.len() / k, k], gpt.device()).unwrap();
    let flat = gpt.logits(&ids).unwrap().to_f64_vec().unwrap();
    flat.chunks_exact(VOCABULARY).map(<[f64]>::to_vec).collect()
}

#[test]
fn a_position_sees_its_own_and_earlier_tokens_only() {
    for dialect in DIALECTS {
        let gpt = model(dialect, DType::F32, 2);
        for k in [1, 3] {
            let original = ids(12 * k, 1);
            let before = logits(&gpt, &original, k);
            for changed in 0..original.len() {
                let mut other = original.clone();
                other[changed] = (other[changed] + 1) % VOCABULARY as i32;
                let after = logits(&gpt, &other, k);
                for (position, (b, a)) in before.iter().zip(&after).enumerate() {
                    let equal = b.iter().zip(a).all(|(b, a)| b.to_bits() == a.to_bits());
                    let earlier = position < changed / k;
                    assert_eq!(equal, earlier, "{dialect}, patches of {k}: token {changed}, position {position}");
                }
            }
        }
    }
}

#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    for dialect in DIALECTS {
        let gpt = model(dialect, DType::F64, 2);
        let rows = [ids(24, 1), ids(24, 2), ids(24, 3)];
        let joined = Tensor::from_slice(&rows.concat(), &[3, 12, 2], gpt.device()).unwrap();
        let joined = gpt.logits(&joined).unwrap().to_f64_vec().unwrap();
        for (row, found) in rows.iter().zip(joined.chunks_exact(12 * VOCABULARY)) {
            let alone = logits(&gpt, row, 2).concat();
            assert!(found.iter().zip(&alone).all(|(f, a)| (f - a).abs() < 1e-12));
        }
    }
}

#[test]
fn cached_logits_are_those_of_the_full_pass() {
    for dialect in DIALECTS {
        let gpt = model(dialect, DType::F32, 2);
        let text = ids(12, 4);
        let full = logits(&gpt, &text, 1);
        // The prompt in one piece, in two, and token by token.
        for pieces in [vec![12], vec![5, 7], vec![1; 12], vec![4, 1, 1, 6]] {
            let mut cache = gpt.cache(12).unwrap();
            assert!(cache.is_empty());
            let mut read = 0;
            for piece in pieces {
                let last = gpt.decode(&text[read..read + piece], &mut cache).unwrap();
                read += piece;
                assert_eq!((cache.len(), cache.is_empty()), (read, false));
                for (found, expected) in last.to_f64_vec().unwrap().iter().zip(&full[read - 1]) {
                    assert!((found - expected).abs() < 1e-5, "{dialect} at {read}: {found} instead of {expected}");
                }
            }
            assert!(gpt.decode(&text[..1], &mut cache).is_err(), "the cache is full");
            cache.clear();
            let first = gpt.decode(&text[..1], &mut cache).unwrap().to_f64_vec().unwrap();
            assert!(first.iter().zip(&full[0]).all(|(f, e)| (f - e).abs() < 1e-5));
        }
    }
}

/// Gradients of all published tensors by name, in f64.
fn gradients(gpt: &Gpt, batch: &TrainBatch, scale: &Tensor) -> Vec<(String, Vec<f64>)> {
    gpt.loss(batch, scale).unwrap().backward().unwrap();
    let view = |tensor: hub::HubTensor| {
        let parameter = gpt.parameters().get(&tensor.parameter).unwrap();
        let gradient = parameter.view(gpt.parameters().gradients()).unwrap();
        let values = tensor.view(&gradient).unwrap().to_f64_vec().unwrap();
        (tensor.name, values)
    };
    hub::tensors(gpt.config()).into_iter().map(view).collect()
}

#[test]
fn every_parameter_receives_a_gradient() {
    for dialect in DIALECTS {
        for tied_head in [false, true] {
            let config = ModelConfig { tied_head, ..config(dialect) };
            let gpt = Gpt::new(&config, DType::F64, &Device::cpu().unwrap(), 5).unwrap();
            for regime in [Regime::token(), Regime::patch(2)] {
                gpt.parameters().zero_gradients().unwrap();
                let windows = ids(2 * (10 * regime.input_patch + regime.target_patch), 2);
                let batch = TrainBatch::from_windows(&windows, 2, &regime, &gpt).unwrap();
                check_gradients(&gpt, &batch, &format!("{dialect}, tied {tied_head}, {regime:?}"));
            }
        }
    }
}

/// Every element of every gradient is there, but for those that are zero by mathematics, and nothing lies between the parameters.
fn check_gradients(gpt: &Gpt, batch: &TrainBatch, case: &str) {
    let (c, tied_head) = (gpt.config().hidden, gpt.config().tied_head);
    let positions = batch.inputs().ids().dim(1);
    let read = batch.inputs().ids().to_vec::<i32>().unwrap();
    for (name, gradient) in gradients(gpt, batch, &batch.mean_scale().unwrap()) {
        let largest = gradient.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
        let zero_by_mathematics = |i: usize| match name.as_str() {
            // Rows of ids that nothing reads; a tied head gives every row a gradient.
            "model.embed_tokens.weight" | "transformer.wte.weight" if !tied_head => !read.contains(&((i / c) as i32)),
            "transformer.wpe.weight" => i / c >= positions,
            _ => false,
        };
        // A bias of the keys adds the same to every score of a row.
        let zero_but_for_rounding = |i: usize| name.ends_with("c_attn.bias") && (c..2 * c).contains(&i);
        for (i, &g) in gradient.iter().enumerate() {
            let what = format!("{case}: {name}[{i}] = {g}");
            if zero_by_mathematics(i) {
                assert_eq!(g, 0.0, "{what}");
            } else if zero_but_for_rounding(i) {
                assert!(g.abs() < 1e-13 * largest, "{what}");
            } else {
                assert!(g != 0.0 && g.is_finite(), "{what}");
            }
        }
    }
    // Nothing was written between the parameters, padding rows of the vocabulary included.
    let total: f64 = gpt.parameters().gradients().to_f64_vec().unwrap().iter().map(|g| g * g).sum();
    let mut named = 0.0;
    for parameter in gpt.parameters().iter() {
        let gradient = parameter.view(gpt.parameters().gradients()).unwrap();
        named += gradient.to_f64_vec().unwrap().iter().map(|g| g * g).sum::<f64>();
    }
    assert!((total - named).abs() < 1e-12 * total);
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    let regime = Regime { target_weights: TargetWeights::Reciprocal, ..Regime::patch(3) };
    for dialect in DIALECTS {
        let gpt = model(dialect, DType::F64, 2);
        let inputs = |from: usize, to: usize| {
            let read: Vec<i32> = (from..to).flat_map(|row| ids(15, row)).collect();
            Inputs::new(&read, to - from, 5, VOCABULARY, gpt.device()).unwrap()
        };
        let mut targets: Vec<i32> = (0..4).flat_map(|row| ids(15, row + 9)).collect();
        // Unequal numbers of valid targets in the two halves.
        targets[3..20].fill(-100);
        let part = |from: usize, to: usize| {
            let targets = &targets[15 * from..15 * to];
            TrainBatch::with_targets(inputs(from, to), targets, &regime.weights(), DType::F64).unwrap()
        };
        let whole = part(0, 4);
        let expected = gradients(&gpt, &whole, &whole.mean_scale().unwrap());
        gpt.parameters().zero_gradients().unwrap();
        let parts = [part(0, 2), part(2, 4)];
        let weight: f64 = parts.iter().map(TrainBatch::valid_weight).sum();
        assert!((weight - whole.valid_weight()).abs() < 1e-12);
        let scale = mean_scale(weight, DType::F64, gpt.device()).unwrap();
        gradients(&gpt, &parts[0], &scale);
        let found = gradients(&gpt, &parts[1], &scale);
        for ((name, found), (_, expected)) in found.iter().zip(&expected) {
            let largest = expected.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
            for (f, e) in found.iter().zip(expected) {
                assert!((f - e).abs() <= 1e-12 * largest, "{dialect} {name}: {f} instead of {e}");
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for dialect in DIALECTS {
        let train = |threads| {
            let gpt = model(dialect, DType::F32, threads);
            let mut optimizer = AdamW::new(gpt.parameters(), AdamWSettings::default()).unwrap();
            for regime in [Regime::patch(4), Regime::patch(4), Regime::token()] {
                let windows = ids(4 * (8 * regime.input_patch + regime.target_patch), 6);
                let batch = TrainBatch::from_windows(&windows, 4, &regime, &gpt).unwrap();
                gpt.parameters().zero_gradients().unwrap();
                let loss = gpt.loss(&batch, &batch.mean_scale().unwrap()).unwrap();
                loss.backward().unwrap();
                optimizer.step(gpt.parameters(), 1e-2, Some(1.0)).unwrap();
            }
            let bits = gpt.parameters().values().to_vec::<f32>().unwrap();
            bits.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        let one = train(1);
        for threads in [2, 3, 7] {
            assert!(one == train(threads), "{dialect} with {threads} threads");
        }
    }
}

#[test]
fn training_learns_a_repeating_text() {
    for dialect in DIALECTS {
        let config = ModelConfig { init_std: 0.02, ..config(dialect) };
        let gpt = Gpt::new(&config, DType::F32, &Device::cpu().unwrap(), 5).unwrap();
        let settings = AdamWSettings { weight_decay: 0.0, ..AdamWSettings::default() };
        let mut optimizer = AdamW::new(gpt.parameters(), settings).unwrap();
        let text: Vec<i32> = (0..200).map(|i| [3, 1, 4, 1, 5, 9, 2, 6][i % 8]).collect();
        for (regime, steps) in [(Regime::patch(2), 150), (Regime::token(), 100)] {
            let len = 10 * regime.input_patch + regime.target_patch;
            let windows: Vec<i32> = (0..8).flat_map(|start| text[start..start + len].to_vec()).collect();
            let batch = TrainBatch::from_windows(&windows, 8, &regime, &gpt).unwrap();
            let mut losses = Vec::new();
            for _ in 0..steps {
                gpt.parameters().zero_gradients().unwrap();
                let loss = gpt.loss(&batch, &batch.mean_scale().unwrap()).unwrap();
                loss.backward().unwrap();
                optimizer.step(gpt.parameters(), 1e-2, Some(1.0)).unwrap();
                losses.push(loss.item().unwrap());
            }
            // Of a text of period 8, only the first position of a window can be uncertain (two tokens follow a 1); a patch of two
            // different tokens cannot be predicted with less than log 2.
            let bound = if regime.is_token_level() { 0.3 } else { 2f64.ln() + 0.1 };
            assert!(losses[0] > 2.0 * bound || regime.is_token_level(), "{dialect}: starts at {}", losses[0]);
            assert!(losses[steps - 1] < bound, "{dialect} {regime:?}: {} after {steps} steps", losses[steps - 1]);
        }
    }
}

/// Norms begin as ones, biases as zeros, matrices normal; GPT-2's projections into the residual stream are narrower by sqrt(2 layers).
#[test]
fn initial_values_have_the_stated_spread() {
    for dialect in DIALECTS {
        let gpt = model(dialect, DType::F64, 1);
        for tensor in hub::tensors(gpt.config()) {
            let parameter = gpt.parameters().get(&tensor.parameter).unwrap();
            let values = tensor.view(&parameter.view(gpt.parameters().values()).unwrap()).unwrap();
            let values = values.to_f64_vec().unwrap();
            if tensor.shape.len() == 1 {
                let constant = if tensor.name.ends_with("bias") { 0.0 } else { 1.0 };
                assert!(values.iter().all(|&value| value == constant), "{}", tensor.name);
                continue;
            }
            let spread = if tensor.name.contains("c_proj") { 0.2 / 6f64.sqrt() } else { 0.2 };
            let count = values.len() as f64;
            let found = (values.iter().map(|x| x * x).sum::<f64>() / count).sqrt();
            // Four standard errors of a standard deviation, and of a mean.
            assert!((found / spread - 1.0).abs() < 4.0 / (2.0 * count).sqrt(), "{}: {found}", tensor.name);
            assert!((values.iter().sum::<f64>() / count).abs() < 4.0 * spread / count.sqrt(), "{}", tensor.name);
        }
    }
}

/// Recomputation keeps less in memory, and a model that only reads does not know of it.
#[test]
fn recomputation_saves_memory_and_does_not_touch_decoding() {
    for dialect in DIALECTS {
        let [kept, cheap, blocks] = [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks].map(|recompute| {
            let gpt = model(dialect, DType::F32, 1).with_recompute(recompute);
            let last = gpt.decode(&ids(5, 3), &mut gpt.cache(8).unwrap()).unwrap().to_f64_vec().unwrap();
            let batch = TrainBatch::from_windows(&ids(32 * 13, 2), 32, &Regime::token(), &gpt).unwrap();
            gpt.loss(&batch, &batch.mean_scale().unwrap()).unwrap().backward().unwrap();
            (gpt.device().backend().memory_peak().unwrap(), last)
        });
        assert!(kept.1 == cheap.1 && kept.1 == blocks.1, "{dialect}");
        let share = |level: &(usize, Vec<f64>)| level.0 as f64 / kept.0 as f64;
        assert!(share(&cheap) < 0.9 && share(&blocks) < 0.75, "{dialect}: {} and {}", share(&cheap), share(&blocks));
    }
}

#[test]
fn mistakes_are_errors_that_name_the_values() {
    let gpt = model(Dialect::Llama, DType::F32, 1);
    let message = |ids: &[i32], shape: &[usize]| {
        let ids = Tensor::from_slice(ids, shape, gpt.device()).unwrap();
        gpt.logits(&ids).err().unwrap().to_string()
    };
    assert!(message(&ids(13, 0), &[1, 13, 1]).contains("13 positions"));
    assert!(message(&ids(4, 0), &[1, 4]).contains("[1, 4]"));
    assert!(message(&[VOCABULARY as i32], &[1, 1, 1]).contains("70"));
    assert!(message(&[-1], &[1, 1, 1]).contains("-1"));

    let windows = |count, sequences, regime: Regime| {
        TrainBatch::from_windows(&ids(count, 0), sequences, &regime, &gpt).err().map(|e| e.to_string())
    };
    assert!(windows(10, 0, Regime::token()).unwrap().contains("0 windows"));
    assert!(windows(11, 2, Regime::patch(2)).unwrap().contains("11 tokens"));
    assert!(windows(2, 1, Regime::patch(2)).unwrap().contains("2 tokens do not make 1 windows"), "no position fits");
    assert!(windows(8, 2, Regime::patch(0)).is_some());
    let no_target = Regime { target_patch: 0, ..Regime::patch(2) };
    assert!(windows(8, 2, no_target).unwrap().contains("windows of T*2 + 0 tokens"));
    assert!(windows(8, 2, Regime::patch(2)).is_none());

    let inputs = Inputs::new(&ids(6, 0), 2, 3, VOCABULARY, gpt.device()).unwrap();
    let batch = TrainBatch::with_targets(inputs.clone(), &[-100; 6], &[1.0], DType::F32).unwrap();
    assert!(batch.mean_scale().err().unwrap().to_string().contains("at least one"));
    for (targets, weights) in [(&[1; 5][..], &[1.0][..]), (&[], &[])] {
        let message = TrainBatch::with_targets(inputs.clone(), targets, weights, DType::F32).err().unwrap().to_string();
        assert!(message.contains(&format!("{} targets for 2 sequences", targets.len())), "{message}");
    }
    for count in [0, 5] {
        let message = Inputs::new(&ids(count, 0), 2, 3, VOCABULARY, gpt.device()).err().unwrap().to_string();
        assert!(message.contains(&format!("{count} ids")), "{message}");
    }

    let mut cache = gpt.cache(4).unwrap();
    assert!(gpt.decode(&[], &mut cache).is_err());
    assert!(gpt.decode(&ids(5, 0), &mut cache).err().unwrap().to_string().contains('5'));
    gpt.decode(&ids(3, 0), &mut cache).unwrap();
    let message = gpt.decode(&ids(2, 0), &mut cache).err().unwrap().to_string();
    assert!(message.contains("between 1 and 1 tokens") && message.contains("3 of which are taken; got 2"), "{message}");
    let zero = ModelConfig { heads: 3, ..config(Dialect::Llama) };
    assert!(Gpt::new(&zero, DType::F32, gpt.device(), 0).is_err());
}
