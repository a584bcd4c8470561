//! `model.safetensors` to and from the parameters. Reading checks every name, shape and type against the layout and tells
//! all that is wrong at once; shards are read one after the other. Writing goes to a file beside the old one, which the
//! new one replaces when it is whole and on disk.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use patchgpt_tensor::{DType, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;

use super::layout::{HubTensor, tensors};
use crate::config::{Dialect, ModelConfig};
use crate::gpt::Gpt;
use crate::stored::{self, Stored, to_tensor};
use crate::{Error, Result};

const WEIGHTS_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
const HEAD: &str = "lm_head.weight";
/// Names that an error lists of each kind of mistake.
const LISTED: usize = 6;

/// Refuses files that cannot hold the parameters of `config` even in half precision: they are truncated, or the sizes in the
/// configuration are not those of the model.
pub(super) fn check_size(folder: &Path, config: &ModelConfig) -> Result<()> {
    let mut bytes = 0;
    let files = files(folder)?;
    for path in &files {
        bytes += path.metadata().map_err(Error::io("read", path))?.len();
    }
    let parameters = config.parameters() as u64;
    if bytes / 2 >= parameters {
        return Ok(());
    }
    let place = files.first().unwrap_or(&folder.to_path_buf()).display().to_string();
    Err(Error::Checkpoint(format!(
        "{place}{} of {bytes} bytes cannot hold the {parameters} parameters that config.json describes: the weights are \
         truncated or belong to another model, or config.json was changed",
        if files.len() > 1 { " and its other shards" } else { "" }
    )))
}

/// Reads the weights in `folder` into the model.
pub(super) fn load(folder: &Path, gpt: &Gpt) -> Result<()> {
    let layout = tensors(gpt.config());
    let mut state = Loading {
        gpt,
        by_name: layout.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect(),
        seen: BTreeSet::new(),
        tied_copy: None,
        unexpected: Vec::new(),
        mismatched: Vec::new(),
    };
    for path in files(folder)? {
        state.read(&path)?;
    }
    state.finish(folder)
}

/// The files that hold the weights: one, or the shards that an index names.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (single, index) = (folder.join(WEIGHTS_FILE), folder.join(INDEX_FILE));
    if single.is_file() || !index.is_file() {
        return Ok(vec![single]);
    }
    let wrong = |what: &str| Error::Checkpoint(format!("{} {what}", index.display()));
    let text = std::fs::read_to_string(&index).map_err(Error::io("read", &index))?;
    let json: Value = serde_json::from_str(&text).map_err(|error| wrong(&format!("is no JSON file: {error}")))?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| wrong("has no table `weight_map` from tensors to files"))?;
    let mut shards = BTreeSet::new();
    for (tensor, file) in map {
        match file.as_str() {
            Some(name) if Path::new(name).file_name().is_some_and(|plain| plain == name) => {
                shards.insert(folder.join(name));
            }
            _ => return Err(wrong(&format!("places `{tensor}` in {file}, which is no file name"))),
        }
    }
    Ok(shards.into_iter().collect())
}

/// What has been read, and what was wrong with it.
struct Loading<'a> {
    gpt: &'a Gpt,
    by_name: HashMap<&'a str, &'a HubTensor>,
    /// Names that were in the files, with the right shape or not.
    seen: BTreeSet<&'a str>,
    /// A head that the files hold although it is tied.
    tied_copy: Option<Tensor>,
    unexpected: Vec<String>,
    mismatched: Vec<String>,
}

impl Loading<'_> {
    fn read(&mut self, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| {
            Error::Checkpoint(format!(
                "{} is not a whole safetensors file ({error}): it is truncated, damaged or of another kind; copy it again",
                path.display()
            ))
        })?;
        let mut names = file.names();
        names.sort_unstable();
        for name in names {
            let damaged = |error| Error::Checkpoint(format!("{}: `{name}`: {error}", path.display()));
            self.place(name, &file.tensor(name).map_err(damaged)?)?;
        }
        Ok(())
    }

    /// Copies a tensor to its place, or notes why not.
    fn place(&mut self, name: &str, found: &TensorView) -> Result<()> {
        let gpt2 = self.gpt.config().dialect == Dialect::Gpt2;
        let full = if gpt2 && name != HEAD && !name.starts_with("transformer.") {
            Cow::Owned(format!("transformer.{name}"))
        } else {
            Cow::Borrowed(name)
        };
        let Some((&key, &tensor)) = self.by_name.get_key_value(full.as_ref()) else {
            if name == HEAD && self.gpt.config().tied_head {
                self.tied_copy = to_tensor(found, self.gpt.device())?;
            } else if !is_buffer(name) {
                self.unexpected.push(name.to_string());
            }
            return Ok(());
        };
        self.seen.insert(key);
        if found.shape() != tensor.shape {
            self.mismatched.push(format!("{name} {:?} instead of {:?}", found.shape(), tensor.shape));
            return Ok(());
        }
        let Some(values) = to_tensor(found, self.gpt.device())? else {
            self.mismatched.push(format!("{name} of type {:?} instead of F32, F16, BF16 or F64", found.dtype()));
            return Ok(());
        };
        let parameters = self.gpt.parameters();
        let parameter = parameters.get(&tensor.parameter)?.view(parameters.values())?;
        Ok(tensor.view(&parameter)?.copy_(&values)?)
    }

    fn finish(self, folder: &Path) -> Result<()> {
        let missing = self.by_name.keys().filter(|&name| !self.seen.contains(name));
        let mut missing: Vec<String> = missing.map(|name| name.to_string()).collect();
        missing.sort_unstable();
        let kinds =
            [("missing", &missing), ("unexpected", &self.unexpected), ("of another shape or type", &self.mismatched)];
        let complaints: Vec<String> = kinds
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(kind, names)| format!("{} {kind}: {}", names.len(), list(names)))
            .collect();
        if complaints.is_empty() {
            self.gpt.parameters().refresh()?;
            return self.check_tied_copy(folder);
        }
        Err(Error::Checkpoint(format!(
            "the weights in {} do not fit the model that its config.json describes; tensors {}. The files belong to different models, \
             or one of them was changed",
            folder.display(),
            complaints.join("; ")
        )))
    }

    /// A head beside a tied embedding must be the embedding once more.
    fn check_tied_copy(&self, folder: &Path) -> Result<()> {
        let Some(head) = &self.tied_copy else { return Ok(()) };
        let embedding = self.gpt.head().tensor();
        if head.shape() == embedding.shape() && head.cast(embedding.dtype())?.max_abs_diff(embedding)? == 0.0 {
            return Ok(());
        }
        Err(Error::Checkpoint(format!(
            "the weights in {} hold `{HEAD}`, which differs from the embedding although config.json says \
             `tie_word_embeddings`: set that to false, or remove the tensor",
            folder.display()
        )))
    }
}

/// The first names, and how many more there are.
fn list(names: &[String]) -> String {
    let shown = names[..names.len().min(LISTED)].join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Constants that older versions of transformers stored with the weights: causal masks and rotation frequencies.
fn is_buffer(name: &str) -> bool {
    [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"].iter().any(|end| name.ends_with(end))
}

/// Writes the weights of the model into `folder`, as f32.
pub(super) fn save(gpt: &Gpt, folder: &Path) -> Result<()> {
    let mut weights = Vec::new();
    for tensor in tensors(gpt.config()) {
        let parameter = gpt.parameters().get(&tensor.parameter)?.view(gpt.parameters().values())?;
        let stored = Stored::new(&tensor.view(&parameter)?.cast(DType::F32)?)?;
        weights.push((tensor.name, stored));
    }
    // transformers asks which framework a file is for.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    stored::write(&folder.join(WEIGHTS_FILE), weights, metadata)
}
