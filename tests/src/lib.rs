//! What crosses the crates of patchgpt: naive references, case tables, tolerances; the tests themselves are in `tests/tests/`.
//!
//! - [`reference`]: one plain f64 implementation per op, index loops from the formula, sharing no code with a backend.
//! - [`cases`]: one table per op, which drives conformance, gradient checks and benches.
//! - [`side`]: one primitive on a device beside the CPU in f64, in any dtype and layout.
//! - [`tolerance`]: what may differ, derived from dtype and reduction length.

pub mod array;
pub mod cases;
pub mod check;
pub mod cuda;
pub mod reference;
pub mod side;
pub mod tolerance;
