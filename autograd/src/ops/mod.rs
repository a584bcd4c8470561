//! The ops, one file each: formula, forward, backward, and the method of [`Var`](crate::Var).

mod binary;
mod broadcast_to;
mod causal_attention;
mod concat;
mod cross_entropy;
mod gelu;
mod layer_norm;
mod linear;
mod linear_cross_entropy;
mod matmul;
mod narrow;
mod patch_embedding;
mod permute;
mod reduce;
mod reshape;
mod rms_norm;
mod rope;
mod self_attention;
mod softmax;
mod swiglu;
mod unary;
