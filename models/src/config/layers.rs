//! Layers of settings and how they become one configuration. Each value is tried on its own against the layers below,
//! so that an error names where the value came from, its key, and what was expected there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::keys::{self, EXCLUSIVE};
use super::presets::{DEFAULT_PRESET, Preset};
use super::{Config, ModelConfig, TokenizerChoice};
use crate::{Error, Result};

/// Where a value stands: a higher rank covers a lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Preset,
    Init,
    File,
    Set,
    Flag,
}

/// One value with its origin.
#[derive(Clone, Debug)]
struct Setting {
    rank: Rank,
    /// The place in the user's words: "the file `a.toml`", "--set train.lr=1", "--lr".
    source: String,
    key: &'static str,
    value: Value,
}

/// Settings collected from files and the command line, not yet put over each other.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    settings: Vec<Setting>,
}

impl Layers {
    /// No settings: the default preset as it is.
    pub fn new() -> Self {
        Layers::default()
    }

    /// Adds a configuration file.
    ///
    /// # Errors
    /// A file that cannot be read or is not TOML, or an unknown section or key.
    pub fn file(self, path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read the configuration", path))?;
        self.text(&format!("the file `{}`", path.display()), &text)
    }

    /// Adds the text of a configuration file; `source` names it in errors.
    ///
    /// # Errors
    /// As [`Layers::file`].
    pub fn text(mut self, source: &str, text: &str) -> Result<Self> {
        let table: Table =
            text.parse().map_err(|error| Error::Config(format!("{source} is not a TOML configuration: {error}")))?;
        for (section, entries) in table {
            let Value::Table(entries) = entries else {
                return Err(Error::Config(keys::unknown(source, &section)));
            };
            for (name, value) in entries {
                self.push(Rank::File, source, &format!("{section}.{name}"), value)?;
            }
        }
        Ok(self)
    }

    /// Adds `section.key=value`, as given to `--set`.
    ///
    /// # Errors
    /// No `=`, or an unknown key.
    pub fn set(mut self, assignment: &str) -> Result<Self> {
        let source = format!("--set {assignment}");
        let Some((name, value)) = assignment.split_once('=') else {
            return Err(Error::Config(format!(
                "{source}: expected section.key=value, for instance --set train.lr=1e-3"
            )));
        };
        let name = name.trim();
        let value = parse_value(name, value.trim());
        self.push(Rank::Set, &source, name, value)?;
        Ok(self)
    }

    /// Adds the value of a flag (named in errors, such as `--lr`) for the key `name`.
    ///
    /// # Errors
    /// An unknown key.
    pub fn flag(mut self, flag: &str, name: &str, value: &str) -> Result<Self> {
        self.push(Rank::Flag, &format!("{flag} {value}"), name, parse_value(name, value))?;
        Ok(self)
    }

    /// Adds the shape of the model whose weights training starts from; it covers the preset's and is covered by the
    /// file and the command line. `source` names it in errors.
    ///
    /// # Errors
    /// A value that TOML cannot hold.
    pub fn model(mut self, source: &str, model: &ModelConfig) -> Result<Self> {
        let table = Table::try_from(model).map_err(|error| Error::Config(format!("{source}: {error}")))?;
        for (name, value) in table {
            if name != "preset" {
                self.push(Rank::Init, source, &format!("model.{name}"), value)?;
            }
        }
        Ok(self)
    }

    /// The value that the files and the command line together give to `key`, before anything is resolved: what a
    /// program needs to know early, such as `train.init`.
    pub fn text_of(&self, key: &str) -> Option<&str> {
        let settings = self.settings.iter().filter(|setting| setting.key == key);
        settings.max_by_key(|setting| setting.rank)?.value.as_str()
    }

    fn push(&mut self, rank: Rank, source: &str, name: &str, value: Value) -> Result<()> {
        let key = keys::find(name).ok_or_else(|| Error::Config(keys::unknown(source, name)))?;
        self.settings.push(Setting { rank, source: source.into(), key: key.name, value });
        Ok(())
    }

    pub(super) fn resolve(mut self, vocabulary: impl FnOnce(&Path) -> Result<usize>) -> Result<Config> {
        self.settings.sort_by_key(|setting| setting.rank);
        let preset = self.preset()?;
        self.check_exclusive()?;
        let mut table = Table::try_from(preset.config())
            .map_err(|error| Error::Config(format!("the preset `{}`: {error}", preset.name)))?;
        let mut ranks = BTreeMap::new();
        for setting in &self.settings {
            overlay(&mut table, setting)?;
            ranks.insert(setting.key, setting.rank);
        }
        let mut config: Config =
            table.try_into().map_err(|error| Error::Config(format!("the configuration is not complete: {error}")))?;
        derive(&mut config, |key| ranks.get(key).copied().unwrap_or(Rank::Preset), vocabulary)?;
        config.validate()?;
        Ok(config)
    }

    /// The preset that everything is laid over. A file and a flag that name different ones contradict each other: the
    /// file's other values belong to its own preset.
    fn preset(&self) -> Result<&'static Preset> {
        let mut named = self.settings.iter().filter(|setting| setting.key == "model.preset");
        let Some(first) = named.next() else {
            return Preset::find(DEFAULT_PRESET);
        };
        for other in named {
            if other.value != first.value {
                return Err(Error::Config(format!(
                    "{} gives model.preset = {}, but {} gives {}: give one of them",
                    first.source, first.value, other.source, other.value
                )));
            }
        }
        match &first.value {
            Value::String(name) => Preset::find(name),
            other => {
                Err(Error::Config(format!("{}: model.preset = {other} is not the name of a preset", first.source)))
            }
        }
    }

    /// Refuses two exclusive keys in one file or on one command line; across these the later layer wins.
    fn check_exclusive(&self) -> Result<()> {
        for group in EXCLUSIVE {
            let command_line = |setting: &&Setting| setting.rank >= Rank::Set;
            let file = |setting: &&Setting| setting.rank == Rank::File;
            for layer in
                [self.settings.iter().filter(file).collect(), self.settings.iter().filter(command_line).collect()]
            {
                let layer: Vec<&Setting> = layer;
                let mut given = layer.iter().filter(|setting| group.contains(&setting.key));
                let Some(first) = given.next() else { continue };
                if let Some(other) = given.find(|setting| setting.key != first.key) {
                    return Err(Error::Config(format!(
                        "{} = {} ({}) and {} = {} ({}) exclude each other: give one of them",
                        first.key, first.value, first.source, other.key, other.value, other.source
                    )));
                }
            }
        }
        Ok(())
    }
}

/// A value as it stands behind a flag: text for keys that take text, else TOML; what is neither stays text, and is
/// refused by type later.
fn parse_value(name: &str, value: &str) -> Value {
    let parsed = format!("value = {value}").parse::<Table>().ok().filter(|table| table.len() == 1);
    let parsed = parsed.and_then(|mut table| table.remove("value"));
    match parsed {
        Some(Value::String(text)) => Value::String(text),
        Some(other) if !keys::find(name).is_some_and(|key| key.text) => other,
        _ => Value::String(value.into()),
    }
}

/// Puts one value over the table, removes what it excludes, and checks that its type is right.
fn overlay(table: &mut Table, setting: &Setting) -> Result<()> {
    for group in EXCLUSIVE.iter().filter(|group| group.contains(&setting.key)) {
        for key in group.iter().filter(|key| **key != setting.key) {
            if let Some((entries, name)) = entry(table, key) {
                entries.remove(name);
            }
        }
    }
    if let Some((entries, name)) = entry(table, setting.key) {
        entries.insert(name.into(), setting.value.clone());
    }
    match table.clone().try_into::<Config>() {
        Ok(_) => Ok(()),
        Err(error) => {
            // The message's first line says what is wrong; the place is known better here.
            let message = error.message().lines().next().unwrap_or_default().to_string();
            Err(Error::Config(format!("{}: {} = {}: {message}", setting.source, setting.key, setting.value)))
        }
    }
}

/// The section that holds `key`, and the key's name in it.
fn entry<'a, 'k>(table: &'a mut Table, key: &'k str) -> Option<(&'a mut Table, &'k str)> {
    let (section, name) = key.split_once('.')?;
    Some((table.get_mut(section)?.as_table_mut()?, name))
}

/// Values that follow from others unless they were given at least as late: key-value heads from heads, the vocabulary
/// from the tokenizer, the room for positions from the sequence length. Paths become absolute, so that the resolved
/// file repeats the run from any folder.
fn derive(
    config: &mut Config,
    rank: impl Fn(&str) -> Rank,
    vocabulary: impl FnOnce(&Path) -> Result<usize>,
) -> Result<()> {
    let Config { model, data, train, .. } = config;
    // What comes with weights stays as they are.
    let follows = |value: &str, origin: &str| rank(value) != Rank::Init && rank(value) < rank(origin);
    if follows("model.kv_heads", "model.heads") {
        model.kv_heads = model.heads;
    }
    if follows("model.max_positions", "train.seq_len") {
        model.max_positions = model.max_positions.max(train.seq_len);
    }
    if let TokenizerChoice::File(path) = &mut data.tokenizer {
        *path = absolute(path)?;
    }
    if follows("model.vocab_size", "data.tokenizer") {
        model.vocab_size = match &data.tokenizer {
            TokenizerChoice::Bytes => 256,
            TokenizerChoice::Bpe(size) => *size,
            TokenizerChoice::File(path) => vocabulary(path)?,
        };
    }
    for path in [&mut data.path, &mut train.init].into_iter().flatten() {
        *path = absolute(path)?;
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io("find", path))
}
