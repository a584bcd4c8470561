//! Reverse-mode differentiation over [`patchgpt_tensor`]: one file per op, and a gradient checker.
//!
//! - [`Var`] is a tensor and its place in the graph. Its methods are the ops; each has a file in `ops/` with formula, forward and backward.
//! - [`Var::backward`] walks the graph in descending order of creation, adds to the gradients of parameters in place, and frees what it has
//!   used. The order is a function of the program alone, so that gradients are the same to the bit in every run.
//! - [`Function`] is what an op implements, [`apply`] runs it: ops from outside are no different from those inside.
//! - [`recompute`] trades a second forward pass for the memory of activations, [`recompute_cheap`] that of norms and activation functions alone;
//!   [`no_grad`] turns recording off.
//! - [`gradcheck`](fn@gradcheck) holds the gradients of any function of `Var`s against finite differences.
//!
//! A training step:
//! ```
//! use patchgpt_autograd::Var;
//! use patchgpt_tensor::{DType, Device, Distribution, Tensor};
//!
//! # fn main() -> patchgpt_autograd::Result<()> {
//! let device = Device::cpu()?;
//! let normal = Distribution::Normal { mean: 0.0, std: 0.5 };
//! let x = Var::constant(Tensor::random(&[32, 8], normal, 0, 0, DType::F32, &device)?);
//! let y = Var::constant(x.tensor().sum(&[1])?);
//! let w = Tensor::random(&[1, 8], normal, 1, 0, DType::F32, &device)?;
//! let weight = Var::parameter(w.clone());
//! let mut losses = vec![];
//! for _ in 0..50 {
//!     let loss = x.linear(&weight, None)?.sub(&y)?.square()?.mean(&[0, 1])?.reshape(&[])?;
//!     loss.backward()?;
//!     w.add_(&weight.gradient().expect("backward has made it").affine(-0.5, 0.0)?)?;
//!     weight.zero_gradient()?;
//!     losses.push(loss.item()?);
//! }
//! assert!(losses[49] < 1e-3 * losses[0], "{losses:?}");
//! # Ok(()) }
//! ```

mod backward;
mod error;
mod function;
pub mod gradcheck;
mod gradients;
mod graph;
mod ops;
mod recipe;
mod recompute;
mod recording;
mod var;

pub use error::{Error, Result};
pub use function::{Context, Function, Saved, apply};
pub use gradcheck::gradcheck;
pub use gradients::Gradients;
pub use recipe::recompute_cheap;
pub use recompute::recompute;
pub use recording::{is_recording, no_grad};
pub use var::Var;
