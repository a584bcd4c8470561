//! Whole optimizer steps of a GPT, in patches and in tokens, on the CUDA device under test (emulated, unless `PATCHGPT_TEST_CARD` names a card) beside the CPU;
//! recorded and replayed beside the same steps made as they are.

use patchgpt_cuda::Cuda;
use patchgpt_models::config::{Config, Recompute};
use patchgpt_models::data::{Batch, InvertedIndex, WindowShape};
use patchgpt_models::regime::Regime;
use patchgpt_models::train::{Step, Stepper};
use patchgpt_models::{AdamW, AdamWSettings, Gpt, TrainBatch};
use patchgpt_tensor::{DType, Device, IGNORE_INDEX, Tensor};
use patchgpt_tests::cuda::{device, own_device};

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
        let got = train(device(), dialect, dtype).expect("steps on the device");
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

// ---- steps recorded and replayed

const TEXT: &[u8] = b"Shall I compare thee to a summer's day? Thou art more lovely and more temperate: rough winds do shake the darling buds of May, and summer's lease hath all too short a date";
const CLIP: f64 = 0.5;

/// Passes of `sequences` windows each, read from place `from` on; the last target of each is not scored.
fn passes(regime: &Regime, sequences: &[usize], positions: usize, from: usize) -> Vec<Batch> {
    let (ki, ko) = (regime.input_patch, regime.target_patch);
    let token = |index: usize| i32::from(TEXT[index % TEXT.len()]);
    let weights = regime.weights();
    let batch = |(pass, &sequences): (usize, &usize)| {
        let starts = (0..sequences).map(|sequence| from * 7 + (pass * 3 + sequence) * positions * ki);
        let inputs: Vec<i32> = starts.clone().flat_map(|start| (start..start + positions * ki).map(token)).collect();
        let targets = starts.flat_map(|start| (1..=positions).map(move |position| start + position * ki));
        let mut targets: Vec<i32> = targets.flat_map(|first| (first..first + ko).map(token)).collect();
        // Another number of scored targets each step, so that the denominator changes too.
        let unscored = 1 + from % 3;
        targets.iter_mut().rev().take(unscored).for_each(|target| *target = IGNORE_INDEX);
        let scored = targets.iter().zip(weights.iter().cycle()).filter(|&(&target, _)| target != IGNORE_INDEX);
        Batch {
            sequences,
            shape: WindowShape { positions, input_patch: ki, target_patch: ko },
            index: InvertedIndex::new(&inputs, 256).expect("an index"),
            valid_targets: targets.len() - unscored,
            valid_weight: scored.map(|(_, weight)| weight).sum(),
            bag_entropy: 0.0,
            inputs,
            targets,
        }
    };
    sequences.iter().enumerate().map(batch).collect()
}

fn rate(step: usize) -> f64 {
    1e-2 * (1.0 - 0.07 * step as f64)
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    tensor.to_f64_vec().expect("numbers").iter().map(|x| x.to_bits()).collect()
}

/// A model with its optimizer.
struct Model {
    gpt: Gpt,
    optimizer: AdamW,
}

impl Model {
    fn new(device: &Device, dialect: &str, dtype: DType, recompute: Recompute) -> Model {
        let gpt = Gpt::new(&config(dialect).model, dtype, device, 42).expect("a model").with_recompute(recompute);
        let optimizer = AdamW::new(gpt.parameters(), AdamWSettings::default()).expect("an optimizer");
        Model { gpt, optimizer }
    }

    fn step(&mut self, stepper: &mut Stepper, regime: &Regime, passes: &[Batch], step: usize) -> Step {
        stepper
            .step(&self.gpt, &mut self.optimizer, passes, &regime.weights(), rate(step), CLIP)
            .unwrap_or_else(|error| panic!("step {step}: {error}"))
    }

    /// The loss of a batch of other sizes, without a graph, as an evaluation computes it.
    fn evaluate(&self) -> f64 {
        let tokens: Vec<i32> = TEXT[..63].iter().map(|&byte| byte.into()).collect();
        let batch = TrainBatch::from_windows(&tokens, 3, &Regime::token(), &self.gpt).expect("a batch");
        let scale = batch.mean_scale().expect("a scale");
        patchgpt_autograd::no_grad(|| self.gpt.loss(&batch, &scale)).and_then(|loss| Ok(loss.item()?)).expect("a loss")
    }

    /// Weights and moments.
    fn state(&self) -> [Vec<u64>; 3] {
        [self.gpt.parameters().values(), self.optimizer.first_moment(), self.optimizer.second_moment()].map(bits)
    }
}

/// Ten steps, five in patches and five in tokens, an evaluation after each third; what they found and what they left.
fn ten_steps(graphs: bool, dialect: &str, dtype: DType, recompute: Recompute) -> (Vec<u64>, [Vec<u64>; 3]) {
    let device = own_device();
    let mut model = Model::new(&device, dialect, dtype, recompute);
    let mut found = Vec::new();
    // The last pass of a step has fewer sequences.
    for (stage, (regime, positions)) in [(Regime::patch(4), 6), (Regime::token(), 9)].into_iter().enumerate() {
        let mut stepper = Stepper::new(graphs);
        for step in 5 * stage..5 * stage + 5 {
            let batches = passes(&regime, &[2, 1], positions, step);
            let Step { loss, grad_norm } = model.step(&mut stepper, &regime, &batches, step);
            found.extend([loss.to_bits(), grad_norm.to_bits()]);
            assert_eq!(stepper.operations().is_some(), graphs && step % 5 > 0, "step {step}");
            if step % 3 == 2 {
                found.push(model.evaluate().to_bits());
            }
        }
    }
    assert_eq!(model.optimizer.steps(), 10);
    (found, model.state())
}

#[test]
fn replayed_steps_equal_eager_ones_to_the_bit() {
    for (dialect, dtype, recompute) in [
        ("llama", DType::F32, Recompute::Nothing),
        ("gpt2", DType::BF16, Recompute::Cheap),
        ("llama", DType::BF16, Recompute::Blocks),
    ] {
        let eager = ten_steps(false, dialect, dtype, recompute);
        let replayed = ten_steps(true, dialect, dtype, recompute);
        assert_eq!(eager.0, replayed.0, "{dialect} in {dtype}: losses, norms and evaluations");
        assert!(eager.1 == replayed.1, "{dialect} in {dtype}: weights and moments");
    }
}

#[test]
fn a_number_that_the_host_passes_by_value_is_stale_in_a_replay() {
    // The mistake: the optimizer's own method fills learning rate and step number in from the host.
    let by_value = |graphs: bool| {
        let device = own_device();
        let Model { gpt, mut optimizer } = Model::new(&device, "llama", DType::F32, Recompute::Nothing);
        gpt.parameters().gradients().fill_(1e-3).expect("gradients");
        let mut work = |step: usize| optimizer.step(gpt.parameters(), rate(step), Some(CLIP)).map(drop);
        let memory = device.rehearse(|| work(0)).expect("a step").expect("a device that records");
        if graphs {
            let graph = device.capture(memory, || work(1)).expect("a graph");
            (1..4).for_each(|_| graph.replay().expect("a replay"));
        } else {
            (1..4).for_each(|step| work(step).expect("a step"));
        }
        bits(gpt.parameters().values())
    };
    assert!(by_value(false) != by_value(true), "a comparison to the bit must notice");
}

#[test]
fn steps_of_another_kind_are_never_replayed() {
    let device = own_device();
    let token = Regime::token();
    let mut model = Model::new(&device, "llama", DType::F32, Recompute::Nothing);
    let mut stepper = Stepper::new(true);
    let operations = |stepper: &mut Stepper, model: &mut Model, sequences: &[usize], positions: usize| {
        model.step(stepper, &token, &passes(&token, sequences, positions, 1), 1);
        stepper.operations()
    };
    assert_eq!(operations(&mut stepper, &mut model, &[2], 5), None);
    let held = device.downcast::<Cuda>().expect("CUDA").memory_held();
    let known = operations(&mut stepper, &mut model, &[2], 5);
    assert!(known.is_some_and(|count| count > 50), "{known:?}");
    let replayed = device.downcast::<Cuda>().expect("CUDA").memory_held();
    for _ in 0..3 {
        assert_eq!(operations(&mut stepper, &mut model, &[2], 5), known);
        assert_eq!(device.downcast::<Cuda>().expect("CUDA").memory_held(), replayed);
    }
    // Other sizes, other passes: each begins anew, and nothing of what was before is held.
    for (sequences, positions) in [(&[1][..], 5), (&[2], 6), (&[2, 2], 5), (&[2], 5)] {
        assert_eq!(operations(&mut stepper, &mut model, sequences, positions), None);
        assert!(operations(&mut stepper, &mut model, sequences, positions).is_some());
    }
    // So does another model, and the first again.
    let mut other = Model::new(&device, "llama", DType::F32, Recompute::Nothing);
    assert_eq!(operations(&mut stepper, &mut other, &[2], 5), None);
    drop(other);
    assert_eq!(operations(&mut stepper, &mut model, &[2], 5), None);
    assert_eq!(device.downcast::<Cuda>().expect("CUDA").memory_held(), held);
    // A graph saved nothing of weights that it has changed since.
    let before = model.gpt.parameters().values().version();
    operations(&mut stepper, &mut model, &[2], 5);
    assert!(model.gpt.parameters().values().version() > before);
}

#[test]
fn a_replay_checks_its_batch_and_a_failed_recording_names_the_way_around() {
    let device = own_device();
    let token = Regime::token();
    let mut model = Model::new(&device, "llama", DType::F32, Recompute::Nothing);
    let mut stepper = Stepper::new(true);
    let good = passes(&token, &[2], 5, 0);
    model.step(&mut stepper, &token, &good, 0);
    // A recording inside of another cannot be.
    let Model { gpt, optimizer } = &mut model;
    let weights = token.weights();
    let mut step = |passes: &[Batch]| stepper.step(gpt, optimizer, passes, &weights, 1e-3, CLIP);
    let nested = device.rehearse(|| step(&good).map(drop)).expect_err("a recording in a rehearsal").to_string();
    assert!(nested.contains("could not be recorded") && nested.contains("--no-graph"), "{nested}");
    let recorded = step(&good).expect("the step itself");
    type Spoil = fn(&mut Batch);
    let spoiled: [(&str, Spoil); 4] = [
        ("patch_embedding: index 256", |batch| batch.inputs[3] = 256),
        ("cross_entropy: index -5", |batch| batch.targets[3] = -5),
        ("scatter_index", |batch| batch.index.offsets[1] = 1000),
        ("at least one of them must be scored", |batch| batch.valid_weight = 0.0),
    ];
    for (part, spoil) in spoiled {
        let mut bad = good.clone();
        spoil(&mut bad[0]);
        let message = step(&bad).expect_err(part).to_string();
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    let next = step(&good).expect("a step");
    assert!(next.loss < recorded.loss, "{next:?} after {recorded:?}");
    assert_eq!(model.optimizer.steps(), 3, "steps that were refused do not count");
}
