//! What stands before the first step: text to token files (or those of an earlier session, verified by hash), a model with
//! fresh or given weights, and the hashes by which a checkpoint is known to belong to the run.

use std::path::Path;

use patchgpt_cuda::{Cuda, GemmChoices};
use patchgpt_tensor::{DType, Device};

use super::folder::model_folder;
use super::observer::Observer;
use crate::config::{Config, Device as DeviceChoice, DeviceConfig, Dialect, Dtype, ModelConfig};
use crate::data::{Dataset, Text, Tokenizer};
use crate::gpt::Gpt;
use crate::{Error, Result, hub};

/// The device that the configuration names.
///
/// # Errors
/// Threads that cannot be started; CUDA libraries, a card or, for the emulated device, a C++ compiler that are not there.
pub fn open_device(config: &DeviceConfig) -> Result<Device> {
    open_device_with(config, None)
}

/// As [`open_device`]; where the configuration searches for the algorithms of products, the search goes on from `choices`.
///
/// # Errors
/// As [`open_device`]; choices for another version of the library or another card.
pub(super) fn open_device_with(config: &DeviceConfig, choices: Option<GemmChoices>) -> Result<Device> {
    let kernel = config.kernel.as_deref().unwrap_or_default();
    let device_of = |cuda: Cuda| -> Result<Device> {
        let cuda = cuda.with_kernel(kernel)?;
        Ok(if config.searches() { cuda.with_gemm_search(choices)? } else { cuda }.into_device())
    };
    Ok(match (config.device, config.threads) {
        (DeviceChoice::Cpu, Some(threads)) => Device::cpu_with_threads(threads)?,
        (DeviceChoice::Cpu, None) => Device::cpu()?,
        (DeviceChoice::Cuda, _) => device_of(Cuda::open(0)?)?,
        (DeviceChoice::CudaEmulated, _) => device_of(Cuda::emulated()?)?,
    })
}

/// The dtype that the configuration names.
pub fn dtype(config: &DeviceConfig) -> DType {
    match config.dtype {
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::Bf16 => DType::BF16,
    }
}

/// The text that the configuration names.
///
/// # Errors
/// Text that is missing, empty or not UTF-8; no path, in a build without the shipped text.
pub fn load_text(config: &Config) -> Result<Text> {
    match &config.data.path {
        Some(path) => Text::load(path),
        #[cfg(feature = "program")]
        None => Ok(Text::shipped()),
        #[cfg(not(feature = "program"))]
        None => Err(Error::Config(
            "data.path is not set, and this build has no text of its own: give a text file or a folder of them".into(),
        )),
    }
}

/// Tokenizer and token files, made from the text into `folder`.
///
/// # Errors
/// Those of the text and the tokenizer; a folder that cannot be written.
pub fn make_dataset(config: &Config, folder: &Path) -> Result<Dataset> {
    let text = load_text(config)?;
    let dataset = Dataset::prepare(text, config.data.validation_fraction, &config.data.tokenizer, folder)?;
    dataset.tokenizer.save(folder)?;
    Ok(dataset)
}

/// BLAKE3 of the training and of the validation tokens.
pub(super) fn identity(dataset: &Dataset) -> [String; 2] {
    [dataset.training.content_hash(), dataset.validation.content_hash()]
}

/// The dataset of a run that is continued: the files in `folder` if they are what the checkpoint was trained on, else made again.
///
/// # Errors
/// Those of [`make_dataset`]; a text that is not the one the checkpoint was trained on.
pub(super) fn reopen_dataset(
    config: &Config,
    folder: &Path,
    expected: &[String; 2],
    observer: &mut dyn Observer,
) -> Result<Dataset> {
    let reopen = || {
        let dataset = Dataset::open(folder, Tokenizer::load(folder)?)?;
        dataset.training.verify()?;
        dataset.validation.verify()?;
        Ok::<_, Error>(dataset)
    };
    match reopen() {
        Ok(dataset) if identity(&dataset) == *expected => return Ok(dataset),
        Ok(_) => observer.notice("The token files are not those of the checkpoint; they are made again from the text."),
        Err(error) => observer.notice(&format!("The token files are made again from the text: {error}.")),
    }
    let dataset = make_dataset(config, folder)?;
    check_identity(&dataset, expected)?;
    Ok(dataset)
}

/// Checks that the data is what a checkpoint was trained on.
///
/// # Errors
/// Other data.
pub(super) fn check_identity(dataset: &Dataset, expected: &[String; 2]) -> Result<()> {
    if identity(dataset) == *expected {
        return Ok(());
    }
    Err(Error::Data(
        "the text or its tokenizer has changed since the checkpoint was written, so the run cannot be continued to the bit: put \
         the old text back, or start a new run in another folder with --out (its --init takes over the weights)"
            .into(),
    ))
}

/// Checks that every id of the tokenizer has a row in the model.
///
/// # Errors
/// A model with fewer rows.
pub(super) fn check_vocabulary(config: &Config, tokenizer: &Tokenizer) -> Result<()> {
    let (ids, rows) = (tokenizer.vocabulary(), config.model.vocab_size);
    if ids <= rows {
        return Ok(());
    }
    Err(Error::Config(format!(
        "model.vocab_size = {rows} is too small for the tokenizer `{}` with its {ids} ids: set it to at least {ids}, or choose \
         another tokenizer",
        config.data.tokenizer
    )))
}

/// BLAKE3 of the configuration without what a continued run may change.
///
/// # Errors
/// A value that TOML cannot hold.
pub(super) fn config_hash(config: &Config) -> Result<String> {
    let mut same = config.clone();
    (same.device.threads, same.device.graph, same.train.checkpoint_every) = (None, None, 1);
    Ok(blake3::hash(same.to_toml()?.as_bytes()).to_hex().to_string())
}

/// The model before the first step: drawn from the seed, or with the weights that `train.init` names.
///
/// # Errors
/// Weights that cannot be read or do not fit; too little memory.
pub(crate) fn initial_model(config: &Config, device: &Device) -> Result<Gpt> {
    let dtype = dtype(&config.device);
    let gpt = match &config.train.init {
        None => Gpt::new(&config.model, dtype, device, config.train.seed)?,
        Some(path) => {
            let folder = model_folder(path)?;
            check_same_model(&config.model, &hub::load_config(&folder)?, path)?;
            let loaded = hub::load(&folder, dtype, device)?;
            let gpt = Gpt::zeros(&config.model, dtype, device)?;
            gpt.parameters().values().copy_(loaded.parameters().values())?;
            gpt.parameters().refresh()?;
            gpt
        }
    };
    Ok(gpt.with_recompute(config.train.recompute))
}

/// Checks that weights of the model `theirs`, read from `path`, are those of the model `ours`. The room for positions may differ
/// where it has no weights.
fn check_same_model(ours: &ModelConfig, theirs: &ModelConfig, path: &Path) -> Result<()> {
    let learned_positions = ours.dialect == Dialect::Gpt2;
    let sizes = |model: &ModelConfig| {
        [
            ("dialect", model.dialect.to_string()),
            ("layers", model.layers.to_string()),
            ("hidden", model.hidden.to_string()),
            ("ffn", model.ffn.to_string()),
            ("heads", model.heads.to_string()),
            ("kv_heads", model.kv_heads.to_string()),
            ("vocab_size", model.vocab_size.to_string()),
            ("max_positions", if learned_positions { model.max_positions.to_string() } else { String::new() }),
            ("rope_theta", if learned_positions { String::new() } else { model.rope_theta.to_string() }),
            ("norm_eps", model.norm_eps.to_string()),
            ("tied_head", model.tied_head.to_string()),
        ]
    };
    let differences: Vec<String> = sizes(ours)
        .into_iter()
        .zip(sizes(theirs))
        .filter(|((_, ours), (_, theirs))| ours != theirs)
        .map(|((name, ours), (_, theirs))| format!("model.{name} is {ours} here and {theirs} there"))
        .collect();
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::Config(format!(
        "the weights in `{}` are of another model: {}. Leave these settings out to take them from the weights",
        path.display(),
        differences.join("; ")
    )))
}
