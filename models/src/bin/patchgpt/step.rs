//! The flags that choose a training step to be measured or planned, shared by `bench` and `plan`.

use clap::{Args, ValueEnum};
use patchgpt_models::Result;
use patchgpt_models::config::{Config, Layers, TokenizerChoice};
use patchgpt_models::data::Tokenizer;
use patchgpt_models::train::stages::StageName;

use crate::machine::MachineChoice;

/// A training step: model, regime, sizes and where it is computed.
#[derive(Args, Debug)]
pub(crate) struct StepChoice {
    /// Model and sizes: bench-s and bench-m are those that speed is compared at
    #[arg(long, value_name = "NAME", default_value = "bench-s", help_heading = "Step")]
    preset: String,

    /// Steps of which stage: next-token training, or patches of K tokens
    #[arg(long, value_enum, default_value_t = Level::Token, help_heading = "Step")]
    regime: Level,

    /// K, tokens per patch; counts with --regime patch. Without it that of the preset
    #[arg(long, value_name = "K", help_heading = "Step")]
    patch_size: Option<String>,

    /// T, positions per sequence
    #[arg(long, value_name = "T", help_heading = "Step")]
    seq_len: Option<String>,

    /// B, sequences per step
    #[arg(long, value_name = "B", help_heading = "Step")]
    batch_size: Option<String>,

    /// Any key of the configuration, such as train.recompute=cheap; may be given more than once. `patchgpt help train` lists them
    #[arg(long, value_name = "SECTION.KEY=VALUE", help_heading = "Step")]
    set: Vec<String>,

    #[command(flatten)]
    machine: MachineChoice,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Level {
    /// One token in, one token predicted
    Token,
    /// K tokens in, K tokens predicted
    Patch,
}

impl StepChoice {
    /// The configuration with `more` flags: name, key and value of each.
    pub(crate) fn config(&self, more: &[(&'static str, &'static str, &String)]) -> Result<Config> {
        let flags = [
            ("--preset", "model.preset", Some(&self.preset)),
            ("--patch-size", "train.patch_size", self.patch_size.as_ref()),
            ("--seq-len", "train.seq_len", self.seq_len.as_ref()),
            ("--batch-size", "train.batch_size", self.batch_size.as_ref()),
        ];
        let mut layers = Layers::new();
        for assignment in &self.set {
            layers = layers.set(assignment)?;
        }
        let given = flags.into_iter().filter_map(|(flag, key, value)| Some((flag, key, value?.as_str())));
        let more = more.iter().map(|&(flag, key, value)| (flag, key, value.as_str()));
        for (flag, key, value) in given.chain(self.machine.given()).chain(more) {
            layers = layers.flag(flag, key, value)?;
        }
        let mut config = Config::resolve(layers, |path| Ok(Tokenizer::load(path)?.vocabulary()))?;
        // No text is read: the ids are made up, of the model's vocabulary.
        config.data.tokenizer = TokenizerChoice::Bytes;
        Ok(config)
    }

    /// The stage that the step belongs to.
    pub(crate) fn stage(&self) -> StageName {
        match self.regime {
            Level::Token => StageName::Token,
            Level::Patch => StageName::Patch,
        }
    }
}
