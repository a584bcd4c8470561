//! Naive f64 implementations, one file per op: plain index loops from the formula, forward and backward.
//!
//! They share no code with any backend. An op that is a chain of others ([`linear`], [`self_attention`], [`linear_cross_entropy`]) is the
//! chain of their references, never fused.

pub mod adamw;
pub mod binary;
pub mod broadcast_to;
pub mod causal_attention;
pub mod concat;
pub mod copy;
pub mod cross_entropy;
pub mod fill;
pub mod gelu;
pub mod global_norm;
pub mod layer_norm;
pub mod linear;
pub mod linear_cross_entropy;
pub mod matmul;
pub mod narrow;
pub mod patch_embedding;
pub mod permute;
pub mod random;
pub mod reduce;
pub mod reshape;
pub mod rms_norm;
pub mod rope;
pub mod self_attention;
pub mod softmax;
pub mod swiglu;
pub mod unary;
