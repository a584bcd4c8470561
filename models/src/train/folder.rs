//! The folder of a run and what lies where in it: `config.toml` (written first), `metrics.jsonl`, `checkpoints/`, `data/` (token
//! files and tokenizer), `model/` (Hugging Face layout), `report.html` and, with `device.gemm_search`, `gemm.json`. A folder is one run: a new one is never begun in it,
//! and while a process works on a run it holds a lock on its `config.toml`.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::{Error, Result, atomic_file};

const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
const GEMM: &str = "gemm.json";
/// Files and folders whose presence shows that a run or a comparison was begun.
const BEGUN: [&str; 7] = [METRICS, GEMM, "checkpoints", "model", "report.html", TOKEN_ARM, PATCH_ARM];

/// Folder of the runs at token level in a comparison.
pub(crate) const TOKEN_ARM: &str = "token-only";
/// Folder of the runs with patches in a comparison.
pub(crate) const PATCH_ARM: &str = "patch-then-token";

/// The folder of one run.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Claims `path` for a new run and writes its `config.toml`. A folder with nothing but the `config.toml` of a run that never
    /// read its data is taken over.
    ///
    /// # Errors
    /// A folder that holds a run, or a `config.toml` of something else; a folder that cannot be written.
    pub fn create(path: &Path, config: &Config) -> Result<RunFolder> {
        let folder = RunFolder { path: path.to_owned() };
        if let Some(found) = folder.occupied() {
            return Err(Error::Config(format!(
                "`{}` already holds a run (it has `{found}`), and a run is never written over: continue it with --resume, or \
                 choose another folder with --out",
                path.display()
            )));
        }
        // Whoever wrote a configuration may still be reading its data.
        let _held = folder.config().exists().then(|| folder.lock()).transpose()?;
        std::fs::create_dir_all(path).map_err(Error::io("create the folder", path))?;
        atomic_file::replace(&folder.config(), config.to_toml()?.as_bytes())?;
        Ok(folder)
    }

    /// The folder of a run that was begun.
    ///
    /// # Errors
    /// A folder that is not there, holds no `config.toml`, or holds a comparison.
    pub fn open(path: &Path) -> Result<RunFolder> {
        let folder = RunFolder::open_any(path)?;
        if path.join(TOKEN_ARM).exists() {
            return Err(Error::Config(format!(
                "`{}` holds a comparison, not a run: continue it with `patchgpt compare --resume --out`",
                path.display()
            )));
        }
        Ok(folder)
    }

    /// The folder of a comparison that was begun: a configuration and the folders of the arms' runs.
    ///
    /// # Errors
    /// A folder that is not there, holds no `config.toml`, or holds a run.
    pub fn open_comparison(path: &Path) -> Result<RunFolder> {
        let folder = RunFolder::open_any(path)?;
        if path.join(METRICS).exists() {
            return Err(Error::Config(format!(
                "`{}` holds a run, not a comparison: continue it with `patchgpt train --resume --out`",
                path.display()
            )));
        }
        Ok(folder)
    }

    fn open_any(path: &Path) -> Result<RunFolder> {
        let folder = RunFolder { path: path.to_owned() };
        if folder.config().is_file() {
            return Ok(folder);
        }
        let what = if path.is_dir() { "it holds no `config.toml`" } else { "there is no such folder" };
        Err(Error::Config(format!(
            "`{}` is no run: {what}. Give the --out of a run that was begun, or leave --resume out to begin one",
            path.display()
        )))
    }

    /// What is in the folder that a new run must not touch.
    fn occupied(&self) -> Option<&'static str> {
        if let Some(found) = BEGUN.iter().find(|name| self.path.join(name).exists()) {
            return Some(found);
        }
        let foreign = |text: String| !text.starts_with("# Everything that decided this run");
        match std::fs::read_to_string(self.config()) {
            Ok(text) => foreign(text).then_some(CONFIG),
            Err(_) => self.config().exists().then_some(CONFIG),
        }
    }

    /// Keeps other processes off the run until the returned file is dropped.
    ///
    /// # Errors
    /// Another process that works on it.
    pub fn lock(&self) -> Result<File> {
        let path = self.config();
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        match file.try_lock() {
            // Where locks do not exist, as on some network file systems, there is nothing to hold.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(Error::Checkpoint(format!(
                "another process is working on the run in `{}`: wait for it or stop it first",
                self.path.display()
            ))),
        }
    }

    /// The configuration that the run was begun with.
    ///
    /// # Errors
    /// A file that cannot be read or is no configuration.
    pub fn recorded(&self) -> Result<Config> {
        let path = self.config();
        let text = std::fs::read_to_string(&path).map_err(Error::io("read the configuration", &path))?;
        Config::from_toml(&format!("the file `{}`", path.display()), &text)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.toml`.
    pub fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// `metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.path.join(METRICS)
    }

    /// `gemm.json`, the algorithms that a search has chosen for the run's products.
    pub fn gemm(&self) -> PathBuf {
        self.path.join(GEMM)
    }

    /// `checkpoints/`.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// `data/`, with the token files and the tokenizer that made them.
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// `model/`, in Hugging Face layout.
    pub fn model(&self) -> PathBuf {
        self.path.join("model")
    }

    /// `report.html`.
    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }
}

/// The folder in Hugging Face layout that `path` means: itself, or the `model/` of a run.
///
/// # Errors
/// Neither is there; a run that has not finished says so.
pub fn model_folder(path: &Path) -> Result<PathBuf> {
    let model = path.join("model");
    if path.join("config.json").is_file() {
        return Ok(path.to_owned());
    }
    if model.join("config.json").is_file() {
        return Ok(model);
    }
    let why = if path.join(CONFIG).is_file() {
        "the run in it has not finished, so there is no `model` yet: continue it with `patchgpt train --resume --out`"
    } else if path.is_dir() {
        "it holds neither `config.json`, as a Hugging Face folder does, nor `model`, as a run does"
    } else {
        "there is no such folder"
    };
    Err(Error::Config(format!("no model can be read from `{}`: {why}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_never_begun_over_another() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        let config = Config::preset("tiny").unwrap();
        let folder = RunFolder::create(&path, &config).unwrap();
        assert_eq!(folder.recorded().unwrap(), config);
        RunFolder::create(&path, &config).expect("nothing but the configuration was written");
        for name in BEGUN {
            std::fs::write(path.join(name), "kept").unwrap();
            let error = RunFolder::create(&path, &config).unwrap_err();
            assert!(error.to_string().contains(name) && error.exit_code() == 2, "{error}");
            assert_eq!(std::fs::read_to_string(path.join(name)).unwrap(), "kept");
            std::fs::remove_file(path.join(name)).unwrap();
        }
        std::fs::write(folder.config(), "[mine]\n").unwrap();
        assert!(RunFolder::create(&path, &config).is_err());
        assert_eq!(std::fs::read_to_string(folder.config()).unwrap(), "[mine]\n");
    }

    #[test]
    fn a_folder_without_a_run_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let missing = parent.path().join("missing");
        assert!(RunFolder::open(&missing).unwrap_err().to_string().contains("no such folder"));
        assert!(RunFolder::open(parent.path()).unwrap_err().to_string().contains("config.toml"));
        assert!(model_folder(parent.path()).unwrap_err().to_string().contains("neither"));
        RunFolder::create(&missing, &Config::preset("tiny").unwrap()).unwrap();
        assert!(model_folder(&missing).unwrap_err().to_string().contains("has not finished"));
    }

    #[test]
    fn one_process_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(parent.path(), &Config::preset("tiny").unwrap()).unwrap();
        let lock = folder.lock().unwrap();
        assert!(folder.lock().unwrap_err().to_string().contains("another process"));
        let error = RunFolder::create(parent.path(), &Config::preset("gpt2").unwrap()).unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        drop(lock);
        folder.lock().unwrap();
    }
}
