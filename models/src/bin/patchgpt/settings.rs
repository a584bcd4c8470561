//! The flags that stand for keys of the configuration, shared by `train` and `compare`, and how they become one. Values are
//! parsed where every other source of settings is, so that errors read alike.

use clap::Args;
use patchgpt_models::config::{Config, Device, DeviceConfig, Layers};
use patchgpt_models::data::Tokenizer;
use patchgpt_models::train::{RunFolder, model_folder};
use patchgpt_models::{Error, Result, hub};

use crate::machine::MachineChoice;
use crate::output::tell;
use std::path::Path;

/// Everything that decides a run.
#[derive(Args, Debug)]
pub(crate) struct Settings {
    /// Model and recipe to start from: tiny (the default, for a laptop), gpt2, 370m, 780m, 1.3b, 2.7b, bench-s, bench-m
    #[arg(long, value_name = "NAME", help_heading = "Run")]
    preset: Option<String>,

    /// Configuration to lay over the preset; the config.toml of a run repeats that run
    #[arg(long, value_name = "FILE.toml", help_heading = "Run")]
    config: Option<String>,

    /// Any key of the configuration, such as train.weight_decay=0.05; may be given more than once. The keys are listed below
    #[arg(long, value_name = "SECTION.KEY=VALUE", help_heading = "Run")]
    set: Vec<String>,

    /// Seed of initial weights, order of the data and sample: the same seed gives the same run to the bit
    #[arg(long, value_name = "N", help_heading = "Run")]
    seed: Option<String>,

    /// Start from these weights instead of random ones: a Hugging Face folder or another run. Shape and tokenizer come with them
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    init: Option<String>,

    /// Text to train on: a UTF-8 file or a folder of .txt, .md and .jsonl files. Without it, the plays of Shakespeare. The last
    /// tenth is kept for validation
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    data: Option<String>,

    /// How text becomes ids: bytes, bpe:N (N ids, learned from the training text), or a tokenizer.json
    #[arg(long, value_name = "bytes|bpe:N|FILE", help_heading = "Data")]
    tokenizer: Option<String>,

    /// K, tokens per patch: a patch step reads K times the text of a token step at about the same cost
    #[arg(long, value_name = "K", help_heading = "Regime")]
    patch_size: Option<String>,

    /// lambda, the share of the training tokens that is read in patches: 0 never leaves tokens, 0.6667 is the paper's choice
    #[arg(long, value_name = "LAMBDA", allow_negative_numbers = true, help_heading = "Regime")]
    patch_fraction: Option<String>,

    /// Budget as optimizer steps, both stages together
    #[arg(long, value_name = "N", help_heading = "Budget")]
    steps: Option<String>,

    /// Budget as tokens read, to compare at equal data; 30e6 is a number too
    #[arg(long, value_name = "N", help_heading = "Budget")]
    tokens: Option<String>,

    /// Budget as model FLOPs, to compare at equal cost; such as 2e13
    #[arg(long, value_name = "N", help_heading = "Budget")]
    flops: Option<String>,

    /// T, positions per sequence in both stages; a patch sequence reads K*T tokens
    #[arg(long, value_name = "T", help_heading = "Optimisation")]
    seq_len: Option<String>,

    /// B, sequences per step; less memory at the same step with --set train.micro_batch=N
    #[arg(long, value_name = "B", help_heading = "Optimisation")]
    batch_size: Option<String>,

    /// Peak learning rate
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = "Optimisation")]
    lr: Option<String>,

    /// Warm-up of the learning rate: a whole number of steps, or a decimal share of them such as 0.05
    #[arg(long, value_name = "STEPS|SHARE", allow_negative_numbers = true, help_heading = "Optimisation")]
    warmup: Option<String>,

    #[command(flatten)]
    machine: MachineChoice,

    /// Steps between checkpoints: what a power cut can cost
    #[arg(long, value_name = "STEPS", help_heading = "Machine")]
    checkpoint_every: Option<String>,
}

impl Settings {
    /// Flag, key and value of every flag that was given.
    fn given(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        [
            ("--preset", "model.preset", &self.preset),
            ("--seed", "train.seed", &self.seed),
            ("--init", "train.init", &self.init),
            ("--data", "data.path", &self.data),
            ("--tokenizer", "data.tokenizer", &self.tokenizer),
            ("--patch-size", "train.patch_size", &self.patch_size),
            ("--patch-fraction", "train.patch_fraction", &self.patch_fraction),
            ("--steps", "train.steps", &self.steps),
            ("--tokens", "train.tokens", &self.tokens),
            ("--flops", "train.flops", &self.flops),
            ("--seq-len", "train.seq_len", &self.seq_len),
            ("--batch-size", "train.batch_size", &self.batch_size),
            ("--lr", "train.lr", &self.lr),
            ("--warmup", "train.warmup", &self.warmup),
            ("--checkpoint-every", "train.checkpoint_every", &self.checkpoint_every),
        ]
        .into_iter()
        .filter_map(|(flag, key, value)| Some((flag, key, value.as_deref()?)))
        .chain(self.machine.given())
    }

    /// The configuration of a new run, or of the one in `recorded` with the flags laid over what it was begun with.
    pub(crate) fn resolve(&self, recorded: Option<&RunFolder>) -> Result<Config> {
        let mut layers = Layers::new();
        if let Some(folder) = recorded {
            layers = layers.file(&folder.config())?;
        }
        if let Some(file) = &self.config {
            layers = layers.file(Path::new(file))?;
        }
        for assignment in &self.set {
            layers = layers.set(assignment)?;
        }
        for (flag, key, value) in self.given() {
            layers = layers.flag(flag, key, value)?;
        }
        if recorded.is_none() {
            layers = with_weights(layers)?;
        }
        let config = Config::resolve(layers, |path| Ok(Tokenizer::load(path)?.vocabulary()))?;
        prepare_machine(&config.device);
        Ok(config)
    }
}

/// Lays the shape and the tokenizer of the weights that training starts from under everything that was asked for.
fn with_weights(layers: Layers) -> Result<Layers> {
    let Some(init) = layers.text_of("train.init").map(str::to_owned) else {
        return Ok(layers);
    };
    let folder = model_folder(Path::new(&init))?;
    let source = format!("the model in `{}`", folder.display());
    let layers = layers.model(&source, &hub::load_config(&folder)?)?;
    match layers.text_of("data.tokenizer") {
        Some(_) => Ok(layers),
        None => layers.flag("--init", "data.tokenizer", &folder.to_string_lossy()),
    }
}

/// What goes before opening a device: threads, and a word when it will be slow.
pub(crate) fn prepare_machine(device: &DeviceConfig) {
    start_threads(device.threads);
    if device.device == Device::CudaEmulated {
        tell(
            "cuda:emulated runs every GPU thread in turn on one CPU core, to find mistakes in kernels: it is hundreds of times \
             slower than --device cpu",
        );
    }
}

/// The machine for a command over a trained model: that of `recorded` but for what the flags say.
///
/// # Errors
/// A name that is no device; 0 threads.
pub(crate) fn machine(recorded: DeviceConfig, device: Option<&str>, threads: Option<usize>) -> Result<DeviceConfig> {
    if threads == Some(0) {
        return Err(Error::Config("--threads 0: give at least 1, or leave it out for one per core".into()));
    }
    // A search pays over the many steps of a run.
    let mut config = DeviceConfig { threads, gemm_search: None, ..recorded };
    if let Some(name) = device {
        config.device = name.parse()?;
        // Variants are of the device that the run was on.
        config.kernel = config.kernel.filter(|_| config.device != Device::Cpu);
    }
    config.check()?;
    prepare_machine(&config);
    Ok(config)
}

/// Tokenizers compute on rayon's own threads: as many as the rest of the program.
fn start_threads(threads: Option<usize>) {
    if let Some(threads) = threads {
        // Only the first call counts, and it is the only one of the process.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
}

/// The list of keys, for the end of a help text.
pub(crate) fn keys_help() -> String {
    let mut text = String::from("Keys of the configuration, for --set and files:\n");
    for key in patchgpt_models::config::KEYS {
        text.push_str(&format!("  {:<27}{}\n", key.name, key.about));
    }
    text
}
