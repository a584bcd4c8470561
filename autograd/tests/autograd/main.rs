//! Tests of the autograd crate: its ops, its gradient checker, its graph, recomputation.

mod errors;
mod gradcheck;
mod gradcheck_details;
mod graph;
mod inputs;
mod ops;
mod recompute;
