//! Naive f64 implementations, one file per op: plain index loops from the formula, forward and backward.
//!
//! They share no code with any backend, nor with each other beyond [`Array`](crate::array::Array).

pub mod adamw;
pub mod causal_attention;
pub mod cross_entropy;
pub mod elementwise;
pub mod gelu;
pub mod layer_norm;
pub mod matmul;
pub mod patch_embedding;
pub mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod softmax;
pub mod swiglu;
