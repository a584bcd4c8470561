//! The presets, one row each: the shape of the model and the recipe that trains it. The four LLaMA sizes and the recipe
//! are those of Shao, Meng, Zhou (arXiv 2407.12665, table 1 and section 4.1): 180,000 steps of 2M tokens, lambda = 2/3,
//! K = 4 at constant tokens per step, so 120,000 patch steps and 60,000 token steps. `gpt2` has the shape of GPT-2 small.
//! `tiny` is for a laptop; `bench-s` and `bench-m` have the sizes that speed is measured at.

use super::model::{Dialect, ModelConfig};
use super::sections::{
    Bag, DataConfig, Device, DeviceConfig, Documents, Dtype, OptimizerAtSwitch, Recompute, TokenizerChoice, TrainConfig,
};
use super::{Config, nearest};
use crate::regime::{PatchBatch, PatchContext, TargetWeights};
use crate::schedule::{ScheduleRule, Warmup};
use crate::{Error, Result};

/// Name of the preset that is used when none is given.
pub const DEFAULT_PRESET: &str = "tiny";

/// How long a preset trains.
#[derive(Clone, Copy, Debug)]
enum Budget {
    Steps(u64),
    Tokens(u64),
    Flops(f64),
}

/// How a preset divides its training between patches and tokens.
#[derive(Clone, Copy, Debug)]
enum PatchShare {
    /// lambda, of the tokens.
    OfTokens(f64),
    /// r, of the steps.
    OfSteps(f64),
}

/// What presets do not share about training.
#[derive(Clone, Copy, Debug)]
struct Recipe {
    batch_size: usize,
    micro_batch: Option<usize>,
    patch_batch: PatchBatch,
    budget: Budget,
    share: PatchShare,
    optimizer: OptimizerAtSwitch,
    schedule: ScheduleRule,
    lr: f64,
    warmup: Warmup,
    evaluate_every: u64,
    evaluation_windows: usize,
    checkpoint_every: u64,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Name on the command line.
    pub name: &'static str,
    /// What it is, in one phrase.
    pub about: &'static str,
    dialect: Dialect,
    layers: usize,
    hidden: usize,
    ffn: usize,
    heads: usize,
    vocabulary: usize,
    context: usize,
    tied_head: bool,
    init_std: f64,
    recipe: Recipe,
}

/// The authors' recipe: 1024 sequences of 2048 tokens (256 of 8192 in patches), 2000 steps of warm-up in each stage.
const PAPER: Recipe = Recipe {
    batch_size: 1024,
    micro_batch: Some(4),
    patch_batch: PatchBatch::Tokens,
    budget: Budget::Steps(180_000),
    share: PatchShare::OfTokens(2.0 / 3.0),
    optimizer: OptimizerAtSwitch::Reset,
    schedule: ScheduleRule::Rewarm,
    lr: 3e-4,
    warmup: Warmup::Steps(2000),
    evaluate_every: 1000,
    evaluation_windows: 256,
    checkpoint_every: 1000,
};

/// A short run of the same kind whose steps are all of one size.
const BENCH: Recipe = Recipe {
    batch_size: 8,
    micro_batch: None,
    patch_batch: PatchBatch::Positions,
    budget: Budget::Steps(60),
    warmup: Warmup::Fraction(0.05),
    evaluate_every: 30,
    evaluation_windows: 16,
    checkpoint_every: 60,
    ..PAPER
};

const LLAMA: Preset = Preset {
    name: "",
    about: "",
    dialect: Dialect::Llama,
    layers: 24,
    hidden: 1024,
    ffn: 2752,
    heads: 16,
    vocabulary: 32_000,
    context: 2048,
    tied_head: false,
    init_std: 0.02,
    recipe: PAPER,
};

/// Every preset, in the order in which they are listed to a user.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "tiny",
        about: "0.86M, bytes, for a laptop",
        layers: 4,
        hidden: 128,
        ffn: 344,
        heads: 2,
        vocabulary: 256,
        context: 256,
        // The paper's 0.02 suits widths of 1000 and more; at 128 the first hundreds of steps would go into growing the weights.
        init_std: 0.05,
        recipe: Recipe {
            // Small, so that a few minutes hold thousands of steps.
            batch_size: 4,
            micro_batch: None,
            patch_batch: PatchBatch::Positions,
            budget: Budget::Flops(1.8e13),
            // lambda = 2/3 at K = 4, the paper's best choice at fixed compute.
            share: PatchShare::OfSteps(1.0 / 3.0),
            optimizer: OptimizerAtSwitch::Carry,
            schedule: ScheduleRule::Continuous,
            lr: 2e-3,
            warmup: Warmup::Fraction(0.05),
            evaluate_every: 100,
            evaluation_windows: 64,
            checkpoint_every: 500,
        },
        ..LLAMA
    },
    Preset {
        name: "gpt2",
        about: "124M, the shape of GPT-2 small",
        dialect: Dialect::Gpt2,
        layers: 12,
        hidden: 768,
        ffn: 3072,
        heads: 12,
        vocabulary: 50_257,
        context: 1024,
        tied_head: true,
        init_std: 0.02,
        // 320 tokens per parameter, about where the paper finds both regimes level on equal data.
        recipe: Recipe { batch_size: 512, budget: Budget::Tokens(40_000_000_000), ..PAPER },
    },
    Preset { name: "370m", about: "369M, the paper's smallest", ..LLAMA },
    Preset { name: "780m", about: "781M", hidden: 1536, ffn: 4128, ..LLAMA },
    Preset { name: "1.3b", about: "1.345B", hidden: 2048, ffn: 5504, ..LLAMA },
    Preset {
        name: "2.7b",
        about: "2.694B, the paper's largest",
        layers: 32,
        hidden: 2560,
        ffn: 6880,
        heads: 32,
        ..LLAMA
    },
    Preset {
        name: "bench-s",
        about: "13.9M in GPT-2's dialect, for measuring speed",
        dialect: Dialect::Gpt2,
        layers: 6,
        hidden: 384,
        ffn: 1536,
        heads: 6,
        vocabulary: 8192,
        context: 256,
        tied_head: true,
        init_std: 0.02,
        recipe: BENCH,
    },
    Preset {
        name: "bench-m",
        about: "134M in LLaMA's dialect, for measuring speed",
        layers: 12,
        hidden: 768,
        ffn: 2048,
        heads: 12,
        context: 512,
        recipe: Recipe { batch_size: 2, ..BENCH },
        ..LLAMA
    },
];

impl Preset {
    /// The preset of this name.
    ///
    /// # Errors
    /// An unknown name; the error lists the known ones and points at the nearest.
    pub fn find(name: &str) -> Result<&'static Preset> {
        PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| {
            let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
            let hint =
                nearest(name, names.iter().copied()).map_or(String::new(), |near| format!(" (did you mean `{near}`?)"));
            Error::Config(format!("there is no preset `{name}`{hint}; available: {}", names.join(", ")))
        })
    }

    /// The whole configuration of the preset, every value given.
    pub fn config(&self) -> Config {
        Config { model: self.model(), data: self.data(), train: self.train(), device: default_device() }
    }

    fn model(&self) -> ModelConfig {
        ModelConfig {
            preset: Some(self.name.into()),
            dialect: self.dialect,
            layers: self.layers,
            hidden: self.hidden,
            ffn: self.ffn,
            heads: self.heads,
            kv_heads: self.heads,
            vocab_size: self.vocabulary,
            max_positions: self.context,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
            tied_head: self.tied_head,
            init_std: self.init_std,
        }
    }

    fn data(&self) -> DataConfig {
        DataConfig {
            path: None,
            tokenizer: match self.vocabulary {
                256 => TokenizerChoice::Bytes,
                size => TokenizerChoice::Bpe(size),
            },
            validation_fraction: 0.1,
            documents: Documents::Cross,
        }
    }

    fn train(&self) -> TrainConfig {
        let recipe = &self.recipe;
        let (mut steps, mut tokens, mut flops) = (None, None, None);
        match recipe.budget {
            Budget::Steps(count) => steps = Some(count),
            Budget::Tokens(count) => tokens = Some(count),
            Budget::Flops(count) => flops = Some(count),
        }
        let (patch_fraction, step_fraction) = match recipe.share {
            PatchShare::OfTokens(lambda) => (Some(lambda), None),
            PatchShare::OfSteps(r) => (None, Some(r)),
        };
        TrainConfig {
            seq_len: self.context,
            batch_size: recipe.batch_size,
            micro_batch: recipe.micro_batch,
            steps,
            tokens,
            flops,
            patch_fraction,
            step_fraction,
            patch_size: Some(4),
            patch_sizes: None,
            patch_shares: None,
            bag: Bag::Both,
            target_weights: TargetWeights::Uniform,
            patch_context: PatchContext::Positions,
            patch_batch: recipe.patch_batch,
            optimizer_at_switch: recipe.optimizer,
            schedule: recipe.schedule,
            lr: recipe.lr,
            min_lr: 0.0,
            warmup: recipe.warmup,
            decay_fraction: 0.2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            stochastic_rounding: None,
            clip: 1.0,
            recompute: Recompute::Nothing,
            seed: 1,
            evaluate_every: recipe.evaluate_every,
            evaluation_windows: recipe.evaluation_windows,
            checkpoint_every: recipe.checkpoint_every,
            init: None,
        }
    }
}

fn default_device() -> DeviceConfig {
    DeviceConfig { device: Device::Cpu, dtype: Dtype::F32, threads: None, kernel: None, graph: None, gemm_search: None }
}
