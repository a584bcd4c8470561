//! What crosses the crates of patchgpt: naive references, case tables, tolerances; the tests themselves are in `tests/tests/`.
//!
//! - [`reference`]: one plain f64 implementation per op, index loops from the formula, sharing no code with a backend.
//! - [`cases`]: one table per op, which drives conformance, gradient checks and benches.
//! - [`conformance`]: a device held against the references, for the tests of any backend.
//! - [`side`]: one primitive on a device beside the CPU in f64, in any dtype and layout.
//! - [`tolerance`]: what may differ, derived from dtype and reduction length.
//! - [`untrusted`]: files from outside, and how they are mutated.

pub mod array;
pub mod cases;
pub mod conformance;
pub mod cuda;
pub mod reference;
pub mod side;
pub mod tolerance;
pub mod untrusted;

/// The examples of the guide, which run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/gradient-checking.md")]
pub struct Guide;
