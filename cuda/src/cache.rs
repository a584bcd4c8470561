//! A folder of files made once and used by every later process: compiled kernels, the emulator's libraries.
//!
//! A file's name holds the hash of everything it was made from. It is written beside its place and renamed into it, so that processes
//! that make the same file at the same time do not disturb each other; and it begins with the hash of its contents, so that a damaged one is made again.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// `PATCHGPT_CACHE_DIR`, else `patchgpt` in the user's cache folder, else in the folder for temporary files.
pub(crate) fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("PATCHGPT_CACHE_DIR").filter(|f| !f.is_empty()) {
        return folder.into();
    }
    let user = std::env::var_os("XDG_CACHE_HOME")
        .filter(|f| Path::new(f).is_absolute())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").filter(|h| !h.is_empty()).map(|home| Path::new(&home).join(".cache")));
    user.unwrap_or_else(std::env::temp_dir).join("patchgpt")
}

/// Hash of several parts; where one ends and the next begins counts.
pub(crate) fn hash(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.finalize().to_hex()[..32].to_string()
}

/// The contents of a cached file, if it is there and whole.
pub(crate) fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let (digest, contents) = bytes.split_at_checked(blake3::OUT_LEN)?;
    (blake3::hash(contents).as_bytes() == digest).then(|| contents.to_vec())
}

/// Stores contents; a cache that cannot be written costs time, not the run.
pub(crate) fn write(path: &Path, contents: &[u8]) {
    let _ = replace(path, |file| {
        file.write_all(blake3::hash(contents).as_bytes())?;
        file.write_all(contents)
    });
}

/// Writes a file beside its place and renames it.
pub(crate) fn replace(
    path: &Path,
    body: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let beside = unique(path);
    let outcome = std::fs::File::create(&beside).and_then(|mut file| {
        body(&mut file)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    });
    if outcome.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    outcome
}

/// A name beside `path` that no other process or thread uses.
pub(crate) fn unique(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a").join("kernel");
        assert!(read(&path).is_none());
        write(&path, b"contents");
        assert_eq!(read(&path).unwrap(), b"contents");
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(read(&path).is_none());
        std::fs::write(&path, b"short").unwrap();
        assert!(read(&path).is_none());
    }

    #[test]
    fn the_ends_of_parts_count() {
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
    }
}
