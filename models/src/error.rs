//! What can go wrong, in words a user can act on: every message tells what was expected, what came and what to do.
//! The distinction that the program's exit status makes lives here too: 2 when the request itself is wrong,
//! 1 when a sound request could not be carried out.

use std::path::PathBuf;

use patchgpt_tensor::in_words;

/// Result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed request. The text of each variant is a full sentence or paragraph, ready to be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something: a missing file, a full disk, a forbidden folder.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was attempted, as a verb that fits after "cannot": `read`, `write`, `create the folder`.
        action: &'static str,
        /// What it was attempted on.
        path: PathBuf,
        /// The system's own explanation.
        source: std::io::Error,
    },
    /// A flag, a key or a value of the configuration that cannot be meant: usage, not failure.
    #[error("{0}")]
    Config(String),
    /// Text that cannot be trained or evaluated on: empty, not UTF-8, too short.
    #[error("{0}")]
    Data(String),
    /// A tokenizer that cannot be read, trained or applied.
    #[error("{0}")]
    Tokenizer(String),
    /// A checkpoint or a model folder that is truncated, foreign or does not fit the model.
    #[error("{0}")]
    Checkpoint(String),
    /// Metrics that cannot be written (a number that is not finite) or a `metrics.jsonl` that is damaged.
    #[error("{0}")]
    Metrics(String),
    /// A training step for which the device has not enough memory.
    #[error(
        "out of memory on {device}: {} asked for, {} held{detail}. Held by: {}. Less is needed with a smaller --set train.micro_batch (the \
         step stays the same), --set train.recompute=blocks, --dtype bf16, a smaller --batch-size or --seq-len, or a smaller model",
        in_words(*bytes),
        in_words(*held),
        parts.iter().map(|(what, bytes)| format!("{what} {}", in_words(*bytes))).collect::<Vec<_>>().join(", ")
    )]
    OutOfMemory {
        /// Name of the device.
        device: String,
        /// Bytes asked for.
        bytes: usize,
        /// Bytes held.
        held: usize,
        /// What the device says beside that.
        detail: String,
        /// What holds them, with bytes.
        parts: Vec<(&'static str, usize)>,
    },
    /// A training step that the device could not record.
    #[error(
        "the training step could not be recorded as a CUDA graph: {}. With --no-graph (device.graph = false) it is made as it is, to the same bits",
        .0.trim_end_matches('.')
    )]
    Graph(String),
    /// A tensor op that refused its arguments, or a device that failed or ran out of memory.
    #[error(transparent)]
    Tensor(#[from] patchgpt_tensor::Error),
    /// A differentiable op that refused its arguments.
    #[error(transparent)]
    Autograd(#[from] patchgpt_autograd::Error),
}

impl Error {
    /// An [`Error::Io`] from a verb, a path and the system's error; made for `map_err`.
    ///
    /// ```
    /// use patchgpt_models::Error;
    /// let path = std::path::Path::new("no/such/file");
    /// let error = std::fs::read(path).map_err(Error::io("read", path)).unwrap_err();
    /// assert!(error.to_string().starts_with("cannot read `no/such/file`"));
    /// ```
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// True when the request itself is wrong (bad flags, unknown keys or presets, contradictory settings) and would
    /// be wrong again on any machine; false when a sound request failed.
    pub fn is_usage(&self) -> bool {
        matches!(self, Error::Config(_))
    }

    /// Exit status of a program that ends with this error: 2 for usage, 1 for failure.
    pub fn exit_code(&self) -> i32 {
        if self.is_usage() { 2 } else { 1 }
    }
}
