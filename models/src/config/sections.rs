//! The sections `[data]`, `[train]` and `[device]` of a configuration, field by field as they stand in a file.
//! What each key means is said once, here; `keys.rs` repeats it in a phrase for the user.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::choice::choice;
use crate::regime::{PatchBatch, PatchContext, Regime, TargetWeights};
use crate::schedule::{Rates, ScheduleRule, Warmup};
use crate::{Error, Result};

choice! {
    /// Whether a window may run from one document into the next.
    pub enum Documents: "rule for documents" {
        /// Documents are joined and cut without regard to their ends.
        Cross = "cross",
        /// A window ends with its document.
        Respect = "respect",
    }
}

choice! {
    /// Which side of the model sees bags of tokens in the patch stage.
    pub enum Bag: "choice of what to bag" {
        /// Input and target: patch-level training.
        Both = "both",
        /// The input only: K tokens in, the next one out.
        Input = "input",
        /// The target only: one token in, the next K out.
        Target = "target",
    }
}

choice! {
    /// What becomes of the optimizer's moments and step count at the switch.
    pub enum OptimizerAtSwitch: "choice for the optimizer at the switch" {
        /// Moments start again from zero (the authors' recipe).
        Reset = "reset",
        /// Moments are carried over.
        Carry = "carry",
    }
}

choice! {
    /// What the backward pass computes again instead of keeping. The gradients are the same to the bit.
    pub enum Recompute: "choice of what to recompute" {
        /// Nothing: the most memory, the least time.
        Nothing = "nothing",
        /// Norms and activation functions: activations take about a quarter less memory, for a few percent more time.
        Cheap = "cheap",
        /// Whole blocks: one tensor a block is kept, for a third more arithmetic.
        Blocks = "blocks",
    }
}

choice! {
    /// Where the arithmetic runs.
    pub enum Device: "device" {
        /// The host's cores.
        Cpu = "cpu",
        /// The first CUDA device that is visible (`CUDA_VISIBLE_DEVICES` chooses).
        Cuda = "cuda",
        /// The CUDA kernels on the host, thread by thread: to find mistakes, not to train.
        CudaEmulated = "cuda:emulated",
    }
}

choice! {
    /// Type of weights and activations; sums, master weights, moments and gradients of weights of a bf16 model are f32.
    pub enum Dtype: "dtype" {
        /// 32-bit floating point.
        F32 = "f32",
        /// 64-bit floating point.
        F64 = "f64",
        /// bfloat16.
        Bf16 = "bf16",
    }
}

/// How text becomes ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerChoice {
    /// One id per byte, 256 in all.
    Bytes,
    /// Byte-pair encoding of this many ids, learned from the training text.
    Bpe(usize),
    /// A `tokenizer.json`, or a folder that holds one.
    File(PathBuf),
}

impl FromStr for TokenizerChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "bytes" {
            return Ok(TokenizerChoice::Bytes);
        }
        if let Some(size) = text.strip_prefix("bpe:") {
            // The 256 bytes are always among the ids, so that every text can be encoded.
            return match size.parse() {
                Ok(size) if size > 256 => Ok(TokenizerChoice::Bpe(size)),
                _ => Err(Error::Config(format!(
                    "the tokenizer `{text}` needs a vocabulary size above 256 after `bpe:`, for instance bpe:2048"
                ))),
            };
        }
        if text.is_empty() || text == "bpe" {
            return Err(Error::Config(format!(
                "`{text}` is not a tokenizer; expected bytes, bpe:N (for instance bpe:2048) or the path of a \
                 tokenizer.json"
            )));
        }
        Ok(TokenizerChoice::File(text.into()))
    }
}

impl std::fmt::Display for TokenizerChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TokenizerChoice::Bytes => f.write_str("bytes"),
            TokenizerChoice::Bpe(size) => write!(f, "bpe:{size}"),
            TokenizerChoice::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Serialize for TokenizerChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenizerChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Section `[data]`: the text and how it becomes tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// A text file or a folder of them; absent for the plays that ship with the program.
    pub path: Option<PathBuf>,
    /// How text becomes ids.
    pub tokenizer: TokenizerChoice,
    /// Share of the text, at its end, that is only evaluated on; above 0 and below 1.
    pub validation_fraction: f64,
    /// Whether windows cross the ends of documents.
    pub documents: Documents,
}

/// Section `[train]`: batches, budget, the two regimes, optimizer, schedule and what is written when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// T, positions per sequence (tokens, with `patch_context = "tokens"`).
    pub seq_len: usize,
    /// B, sequences per optimizer step.
    pub batch_size: usize,
    /// Sequences per forward and backward pass; absent for the whole batch at once.
    pub micro_batch: Option<usize>,
    /// Budget in optimizer steps of both stages together.
    #[serde(default, deserialize_with = "whole_number")]
    pub steps: Option<u64>,
    /// Budget in tokens read.
    #[serde(default, deserialize_with = "whole_number")]
    pub tokens: Option<u64>,
    /// Budget in model FLOPs.
    pub flops: Option<f64>,
    /// Lambda, the share of training tokens read in patches.
    pub patch_fraction: Option<f64>,
    /// r, the share of steps made in patches; given instead of lambda.
    pub step_fraction: Option<f64>,
    /// K of a single patch stage.
    pub patch_size: Option<usize>,
    /// K of each of several patch stages, in order; given instead of `patch_size`.
    pub patch_sizes: Option<Vec<usize>>,
    /// How lambda (or r) is divided among `patch_sizes`, as relative weights; absent for equal parts.
    pub patch_shares: Option<Vec<f64>>,
    /// Whether input, target or both are bags of tokens.
    pub bag: Bag,
    /// Weights of the tokens of a target patch.
    pub target_weights: TargetWeights,
    /// What stays constant along a patch sequence.
    pub patch_context: PatchContext,
    /// What stays constant across a patch batch.
    pub patch_batch: PatchBatch,
    /// Fate of the optimizer's state at the switch.
    pub optimizer_at_switch: OptimizerAtSwitch,
    /// Learning-rate rule across the switch.
    pub schedule: ScheduleRule,
    /// Peak learning rate.
    pub lr: f64,
    /// Learning rate at the end of the decay.
    pub min_lr: f64,
    /// Length of the warm-up, in steps or as a fraction.
    pub warmup: Warmup,
    /// Share of all steps that the decay of `schedule = "wsd"` takes.
    pub decay_fraction: f64,
    /// AdamW's decay of the first moment.
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    pub beta2: f64,
    /// AdamW's epsilon.
    pub eps: f64,
    /// AdamW's decoupled weight decay, for tensors of two or more dimensions.
    pub weight_decay: f64,
    /// Whether the weights of a bf16 model are rounded stochastically from its master weights, with `seed`; to nearest if absent or false.
    pub stochastic_rounding: Option<bool>,
    /// Largest global gradient norm; 0 turns clipping off.
    pub clip: f64,
    /// What the backward pass computes again instead of keeping.
    pub recompute: Recompute,
    /// Seed of initial weights, data order and samples.
    pub seed: u64,
    /// Steps between evaluations.
    pub evaluate_every: u64,
    /// Fixed windows of validation text that an evaluation scores.
    pub evaluation_windows: usize,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// A Hugging Face folder or another run whose weights training starts from.
    pub init: Option<PathBuf>,
}

impl TrainConfig {
    /// The patch sizes of the patch stages, in order; a size of 1 is token level.
    pub fn stage_patch_sizes(&self) -> Vec<usize> {
        match (&self.patch_sizes, self.patch_size) {
            (Some(sizes), _) => sizes.clone(),
            (None, Some(size)) => vec![size],
            (None, None) => vec![],
        }
    }

    /// The regime of a patch stage with patches of `k` tokens under these settings.
    pub fn patch_regime(&self, k: usize) -> Regime {
        let (input_patch, target_patch) = match self.bag {
            Bag::Both => (k, k),
            Bag::Input => (k, 1),
            Bag::Target => (1, k),
        };
        Regime {
            input_patch,
            target_patch,
            target_weights: self.target_weights,
            context: self.patch_context,
            batch: self.patch_batch,
        }
    }

    /// The settings of the learning-rate schedule.
    pub fn rates(&self) -> Rates {
        Rates {
            rule: self.schedule,
            peak: self.lr,
            floor: self.min_lr,
            warmup: self.warmup,
            decay_fraction: self.decay_fraction,
        }
    }
}

/// Section `[device]`: where and in what precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// Where the arithmetic runs.
    pub device: Device,
    /// Type of weights and activations; sums, master weights, moments and gradients of weights of a bf16 model are f32.
    pub dtype: Dtype,
    /// Threads; absent for one per core. Results do not depend on it.
    pub threads: Option<usize>,
    /// Variants of CUDA kernels, such as `attention=sm80`; absent for the best that the device has.
    pub kernel: Option<String>,
    /// Whether a training step is recorded once and replayed as a CUDA graph; absent: where the device can. Results do not depend on it.
    pub graph: Option<bool>,
    /// Whether the algorithms of products are found by timing those that cuBLASLt offers; absent: the one that it expects to be the fastest.
    pub gemm_search: Option<bool>,
}

impl DeviceConfig {
    /// Whether training steps are recorded where the device can.
    pub fn graphs(&self) -> bool {
        self.graph.unwrap_or(true)
    }

    /// Whether the algorithms of products are searched for.
    pub fn searches(&self) -> bool {
        self.gemm_search.unwrap_or(false)
    }
}

/// A count written as `30000000` or as `3e7`.
fn whole_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a whole number such as 30000000 or 3e7")]
    enum Number {
        Whole(u64),
        Decimal(f64),
    }
    match Number::deserialize(deserializer)? {
        Number::Whole(count) => Ok(Some(count)),
        // Every whole number up to 2^53 is exact in f64.
        Number::Decimal(count) if count >= 0.0 && count.fract() == 0.0 && count <= 2f64.powi(53) => {
            Ok(Some(count as u64))
        }
        Number::Decimal(other) => {
            Err(serde::de::Error::custom(format!("expected a whole number such as 30000000 or 3e7, not {other}")))
        }
    }
}
