//! GPT language models trained at token level and at patch level: configuration, data, training and evaluation.
//!
//! A [`regime::Regime`] says how tokens become positions; everything else is shared between the two. A training step:
//!
//! ```
//! use patchgpt_models::{AdamW, AdamWSettings, Gpt, TrainBatch, config::Config, regime::Regime};
//! use patchgpt_tensor::{DType, Device};
//!
//! # fn main() -> patchgpt_models::Result<()> {
//! let gpt = Gpt::new(&Config::preset("tiny")?.model, DType::F32, &Device::cpu()?, 42)?;
//! let mut optimizer = AdamW::new(gpt.parameters(), AdamWSettings::default())?;
//! let text = b"Shall I compare thee to a summer's day? Thou art more lovely";
//! let tokens: Vec<i32> = text.iter().map(|&byte| byte.into()).collect();
//! for regime in [Regime::patch(4), Regime::token()] {
//!     let batch = TrainBatch::from_windows(&tokens, 1, &regime, &gpt)?;
//!     gpt.parameters().zero_gradients()?;
//!     let loss = gpt.loss(&batch, &batch.mean_scale()?)?;
//!     loss.backward()?;
//!     let norm = optimizer.step(gpt.parameters(), 1e-3, Some(1.0))?;
//!     println!("loss {:.3}, gradient norm {:.3}", loss.item()?, norm.item()?);
//! #   assert!(loss.item()? < 256f64.ln() + 0.5);
//! }
//! # Ok(()) }
//! ```

mod atomic_file;
#[cfg(feature = "program")]
pub mod benchmark;
#[cfg(feature = "program")]
pub mod compare;
pub mod config;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod flops;
pub mod generate;
pub mod gpt;
pub mod hub;
pub mod inspect;
pub mod optimizer;
pub mod parameters;
#[cfg(feature = "program")]
pub mod planner;
pub mod regime;
#[cfg(feature = "program")]
pub mod report;
pub mod schedule;
mod stored;
pub mod train;

pub use error::{Error, Result};
pub use gpt::{Gpt, TrainBatch};
pub use optimizer::{AdamW, AdamWSettings};
