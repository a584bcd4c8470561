//! Whole models and single ops held against transcripts of PyTorch and transformers (`tests/parity/fixtures`, described in the README there):
//! logits, losses, every gradient, ten optimizer steps, and the published files themselves. Computed there in f64 from f32
//! weights, so f64 is held to 1e-9 and f32 to 2e-5, relative to the largest magnitude of a tensor.

mod adamw;
mod files;
mod fixture;
mod ops;
mod regimes;
