//! Replacing a file at one instant: a reader, or a crash, meets either the old content or all of the new.
//! The new content goes to a sibling, is forced to disk, and is renamed over the old.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// Writes `content` to `path`, whether or not a file is there.
///
/// # Errors
/// A folder that cannot be written or a full disk; what was at `path` is then untouched.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    replace_with(path, |partial| File::create(partial)?.write_all(content))
}

/// Has `write` make the new file, under the name it is given, and puts it in the place of `path`.
///
/// # Errors
/// As [`replace`], and those of `write`.
pub(crate) fn replace_with(path: &Path, write: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let written = write(&partial)
        .and_then(|()| File::options().write(true).open(&partial)?.sync_all())
        .and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|source| {
        // The error to report is the first one; what is left of the new file only takes space.
        let _ = std::fs::remove_file(&partial);
        Error::io("write", path)(source)
    })
}
