//! Made-up runs with the shape of real ones: losses that fall like power laws with noise on them, a jump where patches
//! end, patches that cost a Kth. For the tests of the reports.

use super::*;
use crate::regime::Regime;

const PATCH_SIZE: u64 = 4;
const POSITIONS_PER_STEP: u64 = 4096;
const FLOPS_PER_POSITION: f64 = 5.1e6;
pub(crate) const PARAMETERS: u64 = 861_824;
pub(crate) const BYTES_PER_TOKEN: f64 = 1.0;

/// Uniform noise in -1..1 from a multiplicative congruential generator.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

pub(crate) fn evaluation(loss: f64) -> Evaluation {
    Evaluation { loss, bits_per_byte: loss / std::f64::consts::LN_2 / BYTES_PER_TOKEN }
}

/// A run of `steps`, the first `patch_steps` of them on patches.
pub(crate) fn records(steps: u64, patch_steps: u64, seed: u64) -> Vec<Record> {
    let mut noise = Noise(seed.wrapping_mul(7919) + 1);
    noise.next();
    let end = 1.6 + 0.02 * noise.next();
    let (mut tokens, mut seconds) = (0, 0.0);
    let record = |step: u64| {
        let patches = step <= patch_steps;
        let in_stage = (if patches { step } else { step - patch_steps }) as f64;
        let learned = if patches { 0.0 } else { patch_steps as f64 * 0.9 };
        let (start, floor) = if patches { (5.55, 2.35) } else { (5.55, end) };
        let fall = (start - floor) * (1.0 + (in_stage + learned) / 6.0).powf(-0.55);
        let jump = if patches || patch_steps == 0 { 0.0 } else { 1.1 * (-in_stage / 40.0).exp() };
        let loss = floor + fall + jump + 0.05 * noise.next();
        tokens += POSITIONS_PER_STEP * if patches { PATCH_SIZE } else { 1 };
        let took = 0.105 * (1.0 + 0.06 * noise.next());
        seconds += took;
        let progress = step as f64 / steps as f64;
        let blind = if patches { 0.9 + 2.0 * (-in_stage / 60.0).exp() } else { 0.0 };
        let evaluated = step.is_multiple_of(75) || step == steps;
        Record {
            step,
            stage: if patches { StageName::Patch } else { StageName::Token },
            tokens,
            positions: POSITIONS_PER_STEP * step,
            loss,
            loss_above_floor: patches.then_some(loss - 1.27),
            val_loss: evaluated.then_some(loss - 0.05 * noise.next() + 0.04 + blind),
            lr: 2e-3 * (step as f64 / 50.0).min(0.5 + 0.5 * (std::f64::consts::PI * progress).cos()),
            grad_norm: 0.35 + 3.0 / (1.0 + in_stage / 8.0) + 0.08 * noise.next(),
            tokens_per_second: POSITIONS_PER_STEP as f64 * if patches { 3.6 } else { 1.0 } / took,
            model_flops: step as f64 * POSITIONS_PER_STEP as f64 * FLOPS_PER_POSITION,
            seconds,
        }
    };
    (1..=steps).map(record).collect()
}

/// The plan of a run of `steps`, the first `patch_steps` of them on patches.
pub(crate) fn plan(steps: u64, patch_steps: u64) -> Vec<Stage> {
    let stage = |name, regime: Regime, first_step, steps| Stage {
        name,
        first_step,
        steps,
        sequences: 16,
        micro_batch: 16,
        positions: 256,
        tokens_per_step: POSITIONS_PER_STEP * regime.input_patch as u64,
        positions_per_step: POSITIONS_PER_STEP,
        model_flops_per_step: POSITIONS_PER_STEP as f64 * FLOPS_PER_POSITION,
        regime,
    };
    let size = PATCH_SIZE as usize;
    let patches = Regime { input_patch: size, target_patch: size, ..Regime::token() };
    vec![
        stage(StageName::Patch, patches, 0, patch_steps),
        stage(StageName::Token, Regime::token(), patch_steps, steps - patch_steps),
    ]
}

/// A finished run with hostile text wherever text from outside goes.
pub(crate) fn run() -> RunReport {
    let records = records(1464, 488, 1);
    let end = records[records.len() - 1].val_loss.unwrap_or(f64::NAN);
    RunReport {
        title: "runs/first <b>try</b> & more".to_owned(),
        config_toml: "seed = 1\n\n[model]\npreset = \"tiny\"\nlayers = 4\nhidden = 128\n\n[train]\nsteps = 1464\n\
                      patch_size = 4\npatch_fraction = 0.6667\nname = \"</pre><script>alert('x')</script>\"\n"
            .to_owned(),
        parameters: PARAMETERS,
        stages: plan(1464, 488),
        records,
        initial: Some(evaluation(5.553)),
        evaluation: Some(evaluation(end)),
        sample: "ROMEO.\nO, she doth teach the torches to burn bright <&> so,\nThe more I have, for both are \
                 infinite.\n\u{1}\n\n[_Exit._]\n\nNURSE.\nMadam!\n"
            .to_owned(),
        notes: vec![
            "CPU, 2 threads, f32.".to_owned(),
            "Model FLOPs per position: 6 x (matrix parameters, the head included, the input embedding not) + \
             12 x layers x width x context."
                .to_owned(),
        ],
    }
}

fn seed_run(steps: u64, patch_steps: u64, seed: u64) -> SeedRun {
    let records = records(steps, patch_steps, seed);
    let last = &records[records.len() - 1];
    SeedRun {
        seed,
        initial: Some(evaluation(5.55)),
        evaluation: evaluation(last.val_loss.unwrap_or(f64::NAN)),
        tokens: last.tokens,
        epochs: last.tokens as f64 / 4.6e6,
        model_flops: last.model_flops,
        seconds: last.seconds,
        records,
    }
}

/// A comparison at equal compute over `seeds` seeds.
pub(crate) fn comparison(seeds: u64) -> CompareReport {
    let arm = |name: &str, patch_steps, cost_by_formula, offset| Arm {
        name: name.to_owned(),
        cost_by_formula,
        seeds: (1..=seeds).map(|seed| seed_run(1464, patch_steps, seed + offset)).collect(),
    };
    CompareReport {
        title: "runs/comparison".to_owned(),
        budget: EqualBudget::Compute,
        config_toml: "[model]\npreset = \"tiny\"\n".to_owned(),
        parameters: PARAMETERS,
        arms: vec![arm("token-level only", 0, 1.0, 0), arm("patch-then-token, K = 4", 488, 0.5, 100)],
        notes: Vec::new(),
    }
}
