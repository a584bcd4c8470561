//! Models in the Hugging Face layout, which stock transformers reads and writes: a folder with `config.json`,
//! `model.safetensors` (or shards and their index) and `tokenizer_config.json`; `tokenizer.json` is its owner's to copy.
//! Both dialects; weights are written as f32 whatever the model computes in, and read from f64, f32, f16 and bf16.

mod config;
mod layout;
mod weights;

use std::path::Path;

use patchgpt_tensor::{DType, Device};

pub use layout::{HubTensor, tensors};

use crate::config::ModelConfig;
use crate::gpt::Gpt;
use crate::{Error, Result, atomic_file};

const CONFIG_FILE: &str = "config.json";
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// The configuration that `config.json` in `folder` describes.
///
/// # Errors
/// No such file, JSON that is damaged or lacks a size, a kind of model or a feature that is not supported: the error names the key.
pub fn load_config(folder: &Path) -> Result<ModelConfig> {
    let path = folder.join(CONFIG_FILE);
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let place = path.display().to_string();
    let json = serde_json::from_str(&text).map_err(|error| {
        Error::Checkpoint(format!("{place} is no JSON file ({error}): it is damaged or of another program"))
    })?;
    config::from_json(&json, &place)
}

/// The model in `folder`, its weights converted to `dtype` (f32, f64 or bf16).
///
/// # Errors
/// Those of [`load_config`]; files that are missing, truncated or foreign; tensors that are missing, unexpected or of another shape
/// or type, all of them named.
pub fn load(folder: &Path, dtype: DType, device: &Device) -> Result<Gpt> {
    let config = load_config(folder)?;
    // Before memory is taken for what the configuration describes.
    weights::check_size(folder, &config)?;
    let gpt = Gpt::zeros(&config, dtype, device)?;
    weights::load(folder, &gpt)?;
    Ok(gpt)
}

/// Writes the model into `folder`, which is created if it is not there; files of the same names are replaced, each at one instant.
///
/// # Errors
/// A folder that cannot be written, a full disk; files that were there are then whole.
pub fn save(gpt: &Gpt, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("create the folder", folder))?;
    weights::save(gpt, folder)?;
    let tokenizer = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "model_max_length": gpt.config().max_positions,
    });
    for (name, json) in [(CONFIG_FILE, config::to_json(gpt.config())), (TOKENIZER_CONFIG_FILE, tokenizer)] {
        atomic_file::replace(&folder.join(name), format!("{json:#}\n").as_bytes())?;
    }
    Ok(())
}
