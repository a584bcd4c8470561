//! Tests of the autograd crate: its ops, its gradient checker, its graph, recomputation.

mod gradcheck;
mod graph;
mod inputs;
mod ops;
mod recompute;
