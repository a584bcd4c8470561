//! Ctrl-C (and a polite kill): the first asks the run to stop after its step, the second ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use patchgpt_models::{Error, Result};

use crate::output::tell;

/// Exit status of a run that was stopped: 128 + SIGINT.
pub(crate) const STOPPED: u8 = 130;

/// Listens from now on; the returned flag becomes true with the first Ctrl-C.
pub(crate) fn listen() -> Result<Arc<AtomicBool>> {
    let asked = Arc::new(AtomicBool::new(false));
    let flag = asked.clone();
    let on_signal = move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(STOPPED.into());
        }
        tell("\nfinishing the step and writing a checkpoint; Ctrl-C again stops at once");
    };
    ctrlc::set_handler(on_signal).map_err(|error| Error::Config(format!("cannot listen for Ctrl-C: {error}")))?;
    Ok(asked)
}
