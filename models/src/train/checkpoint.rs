//! Checkpoints: everything a run needs to continue to the bit, in one safetensors file each: `weights`, `first_moment` and
//! `second_moment`, flat, in the run's dtype, and the counters as JSON in the file's metadata, with a BLAKE3 checksum over all
//! of it. A file is written beside its place, forced to disk and renamed, so it is whole or not there; the newest two are kept.
//! The order of the data and all random numbers are functions of the seed and these counters. To the bit means on the same device: on a card of another kind or
//! with other memory, the libraries' products and the chunks of the head's rows sum in other orders.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::evaluate::Evaluation;
use crate::optimizer::AdamW;
use crate::parameters::Parameters;
use crate::stored::{self, Stored, to_tensor};
use crate::{Error, Result};

/// How many checkpoints are kept.
const KEPT: usize = 2;
const EXTENSION: &str = "safetensors";
const TENSORS: [&str; 3] = ["weights", "first_moment", "second_moment"];

/// The counters of a run, and what it is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps made.
    pub step: u64,
    /// Updates that the optimizer made since its last reset.
    pub optimizer_steps: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Seed of weights, data order and sample.
    pub seed: u64,
    /// The evaluation before the first step.
    pub initial: Measured,
    /// BLAKE3 of the configuration without the keys that may change on the way.
    pub config: String,
    /// BLAKE3 of the training and of the validation tokens.
    pub data: [String; 2],
}

/// What an evaluation measured, without what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    loss: f64,
    bits_per_byte: f64,
    tokens: u64,
    bytes: u64,
}

impl From<Evaluation> for Measured {
    fn from(evaluation: Evaluation) -> Self {
        let Evaluation { loss, bits_per_byte, tokens, bytes, .. } = evaluation;
        Measured { loss, bits_per_byte, tokens, bytes }
    }
}

impl From<Measured> for Evaluation {
    fn from(measured: Measured) -> Self {
        let Measured { loss, bits_per_byte, tokens, bytes } = measured;
        Evaluation { loss, perplexity: loss.exp(), bits_per_byte, tokens, bytes }
    }
}

/// The checkpoints of one run.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    /// Those in `folder`, which need not be there yet.
    pub fn new(folder: PathBuf) -> Self {
        Checkpoints { folder }
    }

    /// Writes a checkpoint, then removes all but the newest two and what an interrupted write left. Returns its path.
    ///
    /// # Errors
    /// A folder that cannot be written or a full disk: the checkpoints that were there are then whole and kept.
    pub fn write(&self, state: &State, parameters: &Parameters, optimizer: &AdamW) -> Result<PathBuf> {
        std::fs::create_dir_all(&self.folder).map_err(Error::io("create the folder", &self.folder))?;
        let path = self.folder.join(format!("step-{:010}.{EXTENSION}", state.step));
        let flat = [parameters.values(), optimizer.first_moment(), optimizer.second_moment()];
        let mut tensors = Vec::with_capacity(flat.len());
        for (name, tensor) in TENSORS.into_iter().zip(flat) {
            tensors.push((name, Stored::new(tensor)?));
        }
        let json = serde_json::to_string(state)
            .map_err(|error| Error::Checkpoint(format!("the counters of the run cannot be written: {error}")))?;
        let checksum = checksum(&json, tensors.iter().map(|(_, stored)| stored.bytes()));
        let metadata = HashMap::from([("state".to_owned(), json), ("blake3".to_owned(), checksum)]);
        stored::write(&path, tensors, metadata)?;
        sync_folder(&self.folder);
        self.prune()?;
        Ok(path)
    }

    /// The newest checkpoint that is whole. Each newer one that is not is told to `skipped`, as a sentence.
    ///
    /// # Errors
    /// Checkpoints of which none is whole; a folder that cannot be read.
    pub fn newest(&self, mut skipped: impl FnMut(String)) -> Result<Option<Checkpoint>> {
        let paths = self.paths(EXTENSION)?;
        let mut complaints = Vec::new();
        for path in paths.iter().rev() {
            match Checkpoint::read(path) {
                Ok(checkpoint) => {
                    for complaint in complaints {
                        skipped(format!(
                            "{complaint}; an older checkpoint, of step {}, is used",
                            checkpoint.state.step
                        ));
                    }
                    return Ok(Some(checkpoint));
                }
                Err(error) => complaints.push(error.to_string()),
            }
        }
        if complaints.is_empty() {
            return Ok(None);
        }
        Err(Error::Checkpoint(format!(
            "no checkpoint in `{}` can be used: {}. Put a whole one there, or remove the folder to start the run over with --resume",
            self.folder.display(),
            complaints.join("; ")
        )))
    }

    /// The files of steps with this extension, by step.
    fn paths(&self, wanted: &str) -> Result<Vec<PathBuf>> {
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let unreadable = |source| Error::io("read the folder", &self.folder)(source);
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let named = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-"));
            if named && path.extension().is_some_and(|extension| extension == wanted) {
                paths.push(path);
            }
        }
        // Steps are written with leading zeros, so that the order of names is theirs.
        paths.sort();
        Ok(paths)
    }

    fn prune(&self) -> Result<()> {
        let paths = self.paths(EXTENSION)?;
        let old = &paths[..paths.len().saturating_sub(KEPT)];
        // What a kill left of a write that was under way.
        let torn = self.paths("partial")?;
        for path in old.iter().chain(&torn) {
            std::fs::remove_file(path).map_err(Error::io("remove the old checkpoint", path))?;
        }
        Ok(())
    }
}

/// A whole checkpoint in memory.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its counters.
    pub state: State,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Checkpoint {
    fn read(path: &Path) -> Result<Checkpoint> {
        let wrong = |why: String| Error::Checkpoint(format!("`{}` is not a whole checkpoint: {why}", path.display()));
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let (_, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|error| wrong(format!("truncated or foreign ({error})")))?;
        let tensors =
            SafeTensors::deserialize(&bytes).map_err(|error| wrong(format!("truncated or foreign ({error})")))?;
        let entry = |key: &str| metadata.metadata().as_ref()?.get(key).cloned();
        let (Some(json), Some(stored)) = (entry("state"), entry("blake3")) else {
            return Err(wrong("it holds no counters, so it is not of this program".into()));
        };
        let mut parts = Vec::with_capacity(TENSORS.len());
        for name in TENSORS {
            parts.push(tensors.tensor(name).map_err(|error| wrong(error.to_string()))?.data());
        }
        if checksum(&json, parts.into_iter()) != stored {
            return Err(wrong("its content is not what its checksum says, so it is damaged".into()));
        }
        let state = serde_json::from_str(&json).map_err(|error| wrong(format!("its counters: {error}")))?;
        Ok(Checkpoint { state, path: path.to_owned(), bytes })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes weights and optimizer state over.
    ///
    /// # Errors
    /// A checkpoint of a model of another size or dtype.
    pub fn restore(&self, parameters: &Parameters, optimizer: &mut AdamW) -> Result<()> {
        let file = SafeTensors::deserialize(&self.bytes)
            .map_err(|error| Error::Checkpoint(format!("`{}`: {error}", self.path.display())))?;
        let mut flat = Vec::with_capacity(TENSORS.len());
        for name in TENSORS {
            let found =
                file.tensor(name).map_err(|error| Error::Checkpoint(format!("`{}`: {error}", self.path.display())))?;
            let values = parameters.values();
            match to_tensor(&found, values.device())? {
                Some(tensor) if tensor.shape() == values.shape() && tensor.dtype() == values.dtype() => {
                    flat.push(tensor)
                }
                _ => {
                    return Err(Error::Checkpoint(format!(
                        "`{}` holds `{name}` of {:?} {:?}, and the run's model has {:?} {}: it is a checkpoint of another run",
                        self.path.display(),
                        found.shape(),
                        found.dtype(),
                        values.shape(),
                        values.dtype()
                    )));
                }
            }
        }
        parameters.values().copy_(&flat[0])?;
        optimizer.load(&flat[1], &flat[2], self.state.optimizer_steps)?;
        optimizer.refresh(parameters)
    }
}

/// BLAKE3 over the counters and the tensors, as hexadecimal digits.
fn checksum<'a>(state: &str, tensors: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(state.as_bytes());
    for bytes in tensors {
        hasher.update(bytes);
    }
    hasher.finalize().to_hex().to_string()
}

/// Makes a rename in the folder lasting. Not every system lets a folder be opened; the file's own content is on disk anyway.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = std::fs::File::open(folder) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
