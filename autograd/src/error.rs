//! Errors of the autograd crate: each names the op, the input or saved tensor concerned, and what to do.

use patchgpt_tensor::DType;

/// What can go wrong when graphs are recorded, walked or checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the tensors underneath.
    #[error(transparent)]
    Tensor(#[from] patchgpt_tensor::Error),
    /// An op that cannot be differentiated met a tracked input.
    #[error(
        "{op}: this op has no backward; implement Function::backward, or take its inputs out of the graph with Var::detach"
    )]
    NoBackward {
        /// The op.
        op: &'static str,
    },
    /// The graph was freed by an earlier backward.
    #[error(
        "{op}: a second backward through this op, but the first one freed what it had saved; call the first with backward_with(.., keep_graph = true)"
    )]
    Released {
        /// The op.
        op: &'static str,
    },
    /// A tensor saved for backward was written in place since.
    #[error(
        "{op}: {what} was written in place after the forward pass that saved it (version {then} then, {now} now); run backward before the write, or write to a copy"
    )]
    Changed {
        /// The op that saved the tensor.
        op: &'static str,
        /// Which saved tensor, and its shape.
        what: String,
        /// The buffer's version when it was saved.
        then: u64,
        /// The buffer's version at backward.
        now: u64,
    },
    /// A function gave a gradient that does not fit its input.
    #[error("{op}: the gradient of input {input} must be {expected}, got {got}")]
    Gradient {
        /// The op.
        op: &'static str,
        /// Number of the input.
        input: usize,
        /// Shape, dtype or device of the input.
        expected: String,
        /// Shape, dtype or device of the gradient.
        got: String,
    },
    /// A function's backward gave no gradient to an input that wants one.
    #[error(
        "{op}: backward gave no gradient to input {input}, which is tracked; call Gradients::zero where it is zero by mathematics"
    )]
    MissingGradient {
        /// The op.
        op: &'static str,
        /// Number of the input.
        input: usize,
    },
    /// A number of an input, output or saved tensor that the op does not have.
    #[error("{op}: no {what} {number}, there are {count}")]
    Number {
        /// The op.
        op: &'static str,
        /// What is counted.
        what: &'static str,
        /// The number asked for.
        number: usize,
        /// How many there are.
        count: usize,
    },
    /// Backward from a value that does not depend on a parameter, or that was computed without recording.
    #[error(
        "backward: this value is not tracked: it depends on no parameter, or was computed under no_grad or after detach"
    )]
    Untracked,
    /// Backward without a gradient from something that is not a scalar.
    #[error(
        "backward: a 0-d value expected, got the shape {shape:?}; reduce it, or give its gradient to backward_with"
    )]
    NotScalar {
        /// The value's shape.
        shape: Vec<usize>,
    },
    /// Only floating-point values can be tracked.
    #[error("{op}: input {input} is tracked but its dtype is {dtype}, which has no gradient; pass it as Var::constant")]
    NotFloat {
        /// The op.
        op: &'static str,
        /// Number of the input.
        input: usize,
        /// The input's dtype.
        dtype: DType,
    },
    /// A value or shape that the op does not accept; also for functions from outside.
    #[error("{op}: {message}")]
    Value {
        /// The op.
        op: &'static str,
        /// What was expected and what came.
        message: String,
    },
    /// A gradient check that did not pass; the report says where.
    #[error("{0}")]
    GradientCheck(Box<crate::gradcheck::Report>),
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A value error of `op`.
    pub fn value(op: &'static str, message: impl Into<String>) -> Self {
        Error::Value { op, message: message.into() }
    }
}
