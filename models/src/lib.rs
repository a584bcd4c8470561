//! GPT language models trained at token level and at patch level: configuration, data, training and evaluation.
//!
//! A [`regime::Regime`] says how tokens become positions; everything else is shared between the two.

mod atomic_file;
pub mod config;
pub mod data;
pub mod error;
pub mod flops;
pub mod regime;
#[cfg(feature = "program")]
pub mod report;
pub mod schedule;
pub mod train;

pub use error::{Error, Result};
