//! Criterion benches of patchgpt.
