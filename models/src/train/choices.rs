//! `gemm.json`, the algorithms that a search has chosen for a run's products (`device.gemm_search`). They decide bits: the file is written as soon as
//! there are new ones, before the metrics and the checkpoint of the step that made them, and a run that is continued uses what it holds.

use std::path::PathBuf;

use patchgpt_cuda::{Cuda, GemmChoices};
use patchgpt_tensor::Device;

use super::prepare;
use crate::config::DeviceConfig;
use crate::{Error, Result, atomic_file};

/// The file of a run and what it holds.
#[derive(Debug)]
pub(super) struct ChoicesFile {
    path: PathBuf,
    written: Option<GemmChoices>,
}

impl ChoicesFile {
    /// The device that the configuration names, with the choices of the file at `path` where it searches and the file is there.
    ///
    /// # Errors
    /// Those of the device; a file that cannot be read, is damaged, or is of another version of the library or another card.
    pub(super) fn open_device(path: PathBuf, config: &DeviceConfig) -> Result<(Device, ChoicesFile)> {
        let written = if config.searches() && path.exists() { Some(read(&path)?) } else { None };
        let device = prepare::open_device_with(config, written.clone()).map_err(|error| match &written {
            Some(_) => Error::Checkpoint(format!(
                "`{}` cannot be used: {}. Continue the run with the library and the card that it was begun with, or remove the file: its products are then \
                 searched anew, and from there on its results differ in their last bits",
                path.display(),
                error.to_string().trim_end_matches('.')
            )),
            None => error,
        })?;
        Ok((device, ChoicesFile { path, written }))
    }

    /// Writes what has been chosen since.
    ///
    /// # Errors
    /// A folder that cannot be written or a full disk.
    pub(super) fn keep(&mut self, device: &Device) -> Result<()> {
        let found = device.downcast::<Cuda>().and_then(Cuda::gemm_choices);
        if let Some(choices) = &found
            && found != self.written
        {
            let json = serde_json::to_vec_pretty(choices)
                .map_err(|error| Error::Checkpoint(format!("the choices of the search cannot be written: {error}")))?;
            atomic_file::replace(&self.path, &json)?;
            self.written = found;
        }
        Ok(())
    }
}

fn read(path: &std::path::Path) -> Result<GemmChoices> {
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map_err(|error| {
        Error::Checkpoint(format!(
            "`{}` does not hold the choices of a search: {error}. Put the run's own file back, or remove it: its products are then searched anew, and \
             from there on its results differ in their last bits",
            path.display()
        ))
    })
}
