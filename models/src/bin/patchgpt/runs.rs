//! The folder `runs`, where runs go that were given no --out: new names, and which run is the newest.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use patchgpt_models::{Error, Result};

const RUNS: &str = "runs";

/// Makes `runs/NAME-N` for the smallest N above those in use.
pub(crate) fn new_folder(name: &str) -> Result<PathBuf> {
    let runs = Path::new(RUNS);
    std::fs::create_dir_all(runs).map_err(Error::io("create the folder", runs))?;
    let entries = std::fs::read_dir(runs).map_err(Error::io("read the folder", runs))?;
    let used = entries.filter_map(|entry| {
        let file_name = entry.ok()?.file_name();
        file_name.to_str()?.strip_prefix(name)?.strip_prefix('-')?.parse::<u64>().ok()
    });
    let mut number = used.max().unwrap_or(0);
    loop {
        number = number.saturating_add(1);
        let path = runs.join(format!("{name}-{number}"));
        match std::fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            // Another process took the name in this moment.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < u64::MAX => {}
            Err(error) => return Err(Error::io("create the folder", path)(error)),
        }
    }
}

/// The folder in `runs` whose file or folder `part` changed last; `wanted` says in an error what was looked for.
pub(crate) fn newest(part: &str, wanted: &str) -> Result<PathBuf> {
    let changed = |folder: &Path| -> Option<SystemTime> { folder.join(part).metadata().ok()?.modified().ok() };
    let entries = std::fs::read_dir(RUNS).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| Some((changed(&entry.path())?, entry.path())));
    found.max().map(|(_, path)| path).ok_or_else(|| {
        Error::Config(format!("there is {wanted} in `{RUNS}`: name the folder, or begin with `patchgpt train`"))
    })
}
