//! Results to standard output, everything else to standard error. A reader that went away (`patchgpt ... | head`) ends the
//! program quietly; nothing here panics on a closed pipe.

use std::io::{ErrorKind, Write};

use patchgpt_models::{Error, Result};

/// Writes text to standard output as it stands and flushes it.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::io("write", "standard output"))
}

/// Writes a line to standard output.
pub(crate) fn print_line(text: &str) -> Result<()> {
    print(&format!("{text}\n"))
}

/// Writes a line to standard error. That nobody reads it is no error.
pub(crate) fn tell(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Whether the error is that standard output has no reader any more.
pub(crate) fn reader_is_gone(error: &Error) -> bool {
    matches!(error, Error::Io { path, source, .. }
        if path.as_os_str() == "standard output" && source.kind() == ErrorKind::BrokenPipe)
}
