//! Strided tensors over interchangeable backends, and a deterministic multi-threaded CPU backend.
//!
//! - [`Tensor`] is a view: a [`Layout`] over a shared [`Buffer`] on a [`Device`].
//! - [`Backend`] is the contract: the complete list of primitives that a device provides, each with its formula.
//! - The methods of [`Tensor`] check shapes, dtypes and devices once, for every backend, and allocate the outputs.
//!
//! An op has one name in every room: `rms_norm` is a method of the contract (`backend.rs`), a checked method of
//! [`Tensor`] (`ops/rms_norm.rs`) and a CPU kernel (`cpu/rms_norm.rs`).

mod arena;
mod backend;
pub mod cpu;
mod device;
mod dtype;
mod error;
mod graph;
mod index;
mod layout;
mod limits;
mod meta;
mod ops;
pub mod profile;
mod tensor;

pub use arena::{Arena, Place};
pub use backend::{
    AdamW, Backend, Binary, Destination, Distribution, IGNORE_INDEX, Linear, LinearCrossEntropy, PRIMITIVES, Reduction,
    Residual, Rounded, Rounding, Unary,
};
pub use device::{Buffer, Device, Memory};
pub use dtype::{DType, Element};
pub use error::{Error, Result, in_words};
pub use graph::{Graph, Replay};
pub use index::ScatterIndex;
pub use layout::{Layout, MAX_RANK, broadcast_shape};
pub use limits::Limits;
pub use meta::{LogitChunk, MemoryModel, Meta};
pub use ops::{CausalAttention, CrossEntropy, LayerNorm, RmsNorm, linear_by_parts};
pub use tensor::Tensor;
