//! Errors of the tensor crate: each names the op, the shapes or values involved and what would be right.

use crate::DType;

/// What can go wrong when tensors are made, viewed or computed with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes that do not fit the op or each other.
    #[error("{op}: {message}")]
    Shape {
        /// The op that refused.
        op: &'static str,
        /// What was expected and what came.
        message: String,
    },
    /// A dtype that the op does not take.
    #[error("{op}: expected {expected}, got {got}; cast with Tensor::cast first")]
    DType {
        /// The op that refused.
        op: &'static str,
        /// The dtype or dtypes that the op takes.
        expected: String,
        /// The dtype that came.
        got: DType,
    },
    /// Tensors of one op that live on different devices.
    #[error("{op}: tensors on different devices: {first} and {second}; move one with Tensor::to_device")]
    Device {
        /// The op that refused.
        op: &'static str,
        /// Name of the first device.
        first: String,
        /// Name of the second device.
        second: String,
    },
    /// An index outside its range.
    #[error("{op}: index {index} at position {position} is outside {low}..{high}")]
    Index {
        /// The op that refused.
        op: &'static str,
        /// The offending index.
        index: i64,
        /// Where it stands among the indices, counted in row-major order.
        position: usize,
        /// Smallest index allowed.
        low: i64,
        /// One past the largest index allowed.
        high: i64,
    },
    /// An output that shares memory with an input of the same op in a way the op does not allow.
    #[error("{op}: the output overlaps an input or another output in memory; give it memory of its own")]
    Overlap {
        /// The op that refused.
        op: &'static str,
    },
    /// The device could not provide memory.
    #[error(
        "out of memory on {device}: {} asked for, {} held by tensors{detail}; use a smaller batch, a shorter sequence or a smaller model",
        in_words(*bytes),
        in_words(*held)
    )]
    OutOfMemory {
        /// Name of the device.
        device: String,
        /// Bytes asked for.
        bytes: usize,
        /// Bytes that live tensors of this device hold.
        held: usize,
        /// What else the device knows, such as what is free; continues the sentence.
        detail: String,
    },
    /// A value that the op does not accept.
    #[error("{op}: {message}")]
    Value {
        /// The op that refused.
        op: &'static str,
        /// What was expected and what came.
        message: String,
    },
    /// A device that cannot be opened or that failed.
    #[error("device {device}: {message}")]
    Backend {
        /// Name of the device.
        device: String,
        /// What happened and what to do.
        message: String,
    },
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Bytes for people: `1.5 GiB`.
pub fn in_words(bytes: usize) -> String {
    let units = [(1usize << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|&&(unit, _)| bytes >= unit) {
        Some(&(unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}

impl Error {
    /// A shape error of `op`.
    pub fn shape(op: &'static str, message: impl Into<String>) -> Self {
        Error::Shape { op, message: message.into() }
    }

    /// A dtype error of `op`.
    pub fn dtype(op: &'static str, expected: impl ToString, got: DType) -> Self {
        Error::DType { op, expected: expected.to_string(), got }
    }

    /// A value error of `op`.
    pub fn value(op: &'static str, message: impl Into<String>) -> Self {
        Error::Value { op, message: message.into() }
    }
}
