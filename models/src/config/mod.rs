//! The configuration of a run: what it is made of, where its values come from, and when two runs are the same.
//! Layers, each over the last: preset, weights to start from, file, `--set section.key=value`, flags. The resolved
//! [`Config`] written with [`Config::to_toml`] and read back as a file repeats the run exactly.

pub(crate) mod choice;
mod keys;
mod layers;
mod model;
mod presets;
mod sections;
#[cfg(test)]
mod tests;
mod validate;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub(crate) use keys::nearest;
pub use keys::{KEYS, Key};
pub use layers::Layers;
pub use model::{Dialect, ModelConfig};
pub use presets::{DEFAULT_PRESET, PRESETS, Preset};
pub use sections::{
    Bag, DataConfig, Device, DeviceConfig, Documents, Dtype, OptimizerAtSwitch, Recompute, TokenizerChoice, TrainConfig,
};

use crate::{Error, Result};

/// Everything that decides a run, every value given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Shape and initial values of the model.
    pub model: ModelConfig,
    /// Text and tokenizer.
    pub data: DataConfig,
    /// Batches, budget, regimes, optimizer and schedule.
    pub train: TrainConfig,
    /// Where and in what precision.
    pub device: DeviceConfig,
}

/// One key in which two configurations differ; `None` is a key that is not set.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// `section.key`.
    pub key: &'static str,
    /// Value on this side, as it would stand in a file.
    pub ours: Option<String>,
    /// Value on the other side.
    pub theirs: Option<String>,
}

impl Config {
    /// The configuration of a preset.
    ///
    /// # Errors
    /// An unknown name.
    pub fn preset(name: &str) -> Result<Config> {
        Ok(Preset::find(name)?.config())
    }

    /// Puts the layers over each other, derives what was left open and checks the result. `vocabulary` gives the
    /// number of ids of a tokenizer read from a file; it is asked only for [`TokenizerChoice::File`].
    ///
    /// # Errors
    /// Any key, value or combination that cannot be meant, with its source, the value and the remedy.
    pub fn resolve(layers: Layers, vocabulary: impl FnOnce(&Path) -> Result<usize>) -> Result<Config> {
        layers.resolve(vocabulary)
    }

    /// Reads a whole configuration, such as the `config.toml` of a run. `source` names it in errors.
    ///
    /// # Errors
    /// As [`Config::resolve`].
    pub fn from_toml(source: &str, text: &str) -> Result<Config> {
        let layers = Layers::new().text(source, text)?;
        layers.resolve(|path| {
            Err(Error::Config(format!(
                "{source}: model.vocab_size is not set, and the tokenizer `{}` was not read",
                path.display()
            )))
        })
    }

    /// The configuration as a TOML file with a comment on every key; [`Config::from_toml`] gives the same back.
    ///
    /// # Errors
    /// A value that TOML cannot hold: a seed above 2^63 - 1, a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        let table = self.to_table()?;
        let mut text =
            String::from("# Everything that decided this run; `patchgpt train --config` on it repeats it.\n");
        let mut section = "";
        for key in KEYS {
            let (group, name) = key.name.split_once('.').unwrap_or(("", key.name));
            if group != section {
                section = group;
                text.push_str(&format!("\n[{section}]\n"));
            }
            if let Some(value) = table.get(group).and_then(|group| group.get(name)) {
                text.push_str(&format!("# {}\n{name} = {value}\n", key.about));
            }
        }
        Ok(text)
    }

    /// The keys in which two configurations differ and that a continued run must not change; the number of threads and
    /// the checkpoint interval are left out.
    ///
    /// # Errors
    /// A value that TOML cannot hold.
    pub fn differences(&self, other: &Config) -> Result<Vec<Difference>> {
        let (ours, theirs) = (self.to_table()?, other.to_table()?);
        let value = |table: &toml::Table, key: &Key| {
            let (group, name) = key.name.split_once('.')?;
            table.get(group)?.get(name).map(toml::Value::to_string)
        };
        Ok(KEYS
            .iter()
            .filter(|key| !key.free_on_resume)
            .map(|key| Difference { key: key.name, ours: value(&ours, key), theirs: value(&theirs, key) })
            .filter(|difference| difference.ours != difference.theirs)
            .collect())
    }

    /// Checks that a run recorded with `recorded` (in `place`, for the error) may be continued with `self`.
    ///
    /// # Errors
    /// Every key that differs, with both values.
    pub fn check_same_run(&self, recorded: &Config, place: &str) -> Result<()> {
        let differences = self.differences(recorded)?;
        if differences.is_empty() {
            return Ok(());
        }
        let word = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".into());
        let list: Vec<String> = differences
            .iter()
            .map(|d| format!("{} is {} here and {} there", d.key, word(&d.ours), word(&d.theirs)))
            .collect();
        Err(Error::Config(format!(
            "these settings contradict {place}, so the run cannot be continued with them: {}. Leave the settings out, or \
             start a new run in another folder with --out",
            list.join("; ")
        )))
    }

    fn to_table(&self) -> Result<toml::Table> {
        toml::Table::try_from(self)
            .map_err(|error| Error::Config(format!("the configuration cannot be written: {error}")))
    }
}
