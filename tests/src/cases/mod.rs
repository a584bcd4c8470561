//! Case tables, one file per op: shapes, placements, parameters, and beside each the reference and the cost.
//!
//! One table serves conformance of every backend (forward and backward in every dtype it computes), gradient checks in f64, and
//! benches. [`all`] lists them; a test fails when a primitive of the contract has none.

mod causal_attention;
mod cross_entropy;
mod elementwise;
mod gelu;
mod layer_norm;
mod linear_cross_entropy;
mod matmul;
mod patch_embedding;
mod reduce;
mod rms_norm;
mod rope;
mod self_attention;
mod softmax;
mod swiglu;
mod views;

use patchgpt_autograd::{Result, Var};

use crate::array::{Array, Placement};

/// A differentiable op of some inputs, through the public functions of autograd.
pub type Run = Box<dyn Fn(&[Var]) -> Result<Var> + Send + Sync>;

/// The reference's output.
pub type Forward = Box<dyn Fn(&[Array]) -> Array + Send + Sync>;

/// The reference's gradients, one for each input, given the output's gradient.
pub type Backward = Box<dyn Fn(&[Array], &Array) -> Vec<Array> + Send + Sync>;

/// One use of an op.
pub struct Case {
    /// The op's name in every room.
    pub op: &'static str,
    /// What distinguishes the case: shapes, placements, parameters.
    pub name: String,
    /// Values and placements of the floating-point inputs.
    pub inputs: Vec<(Array, Placement)>,
    /// The op.
    pub run: Run,
    /// The reference.
    pub forward: Forward,
    /// The reference's gradient.
    pub backward: Backward,
    /// Number of terms in the longest sum, forward or backward.
    pub reduction: usize,
    /// Floating-point operations of the forward pass.
    pub flops: f64,
    /// Elements read and written by the forward pass, each once.
    pub traffic: f64,
}

impl Case {
    /// `op name`, for messages.
    pub fn label(&self) -> String {
        format!("{} {}", self.op, self.name)
    }

    /// The case with its inputs placed otherwise, and that in its name.
    fn placed(mut self, placements: &[Placement]) -> Case {
        for ((_, placement), &new) in self.inputs.iter_mut().zip(placements) {
            *placement = new;
        }
        self.name += &format!(" {placements:?}");
        self
    }
}

/// Random contiguous inputs of the given shapes, in [-1, 1).
fn inputs(shapes: &[&[usize]]) -> Vec<(Array, Placement)> {
    let seed = shapes.iter().flat_map(|s| s.iter()).fold(17, |h: u64, &d| h.wrapping_mul(31).wrapping_add(d as u64));
    let random = |(i, s): (usize, &&[usize])| (Array::random(s, 1.0, seed + i as u64), Placement::Contiguous);
    shapes.iter().enumerate().map(random).collect()
}

/// Reproducible ids in `0..bound`.
fn ids(count: usize, bound: usize, seed: u64) -> Vec<i32> {
    Array::random(&[count], 1.0, seed)
        .data
        .iter()
        .map(|u| (((u + 1.0) / 2.0 * bound as f64) as usize).min(bound - 1) as i32)
        .collect()
}

/// Every case of every op, small enough to be checked in f64 element by element.
pub fn all() -> Vec<Case> {
    let tables = [
        elementwise::cases,
        reduce::cases,
        views::cases,
        matmul::cases,
        softmax::cases,
        patch_embedding::cases,
        rms_norm::cases,
        layer_norm::cases,
        rope::cases,
        causal_attention::cases,
        self_attention::cases,
        gelu::cases,
        swiglu::cases,
        cross_entropy::cases,
        linear_cross_entropy::cases,
    ];
    tables.iter().flat_map(|table| table()).collect()
}

/// Cases of training size: N positions of width C with feed-forward width F and vocabulary V, heads of size 64.
pub fn training_size(positions: usize, sequence: usize, width: usize, ffn: usize, vocabulary: usize) -> Vec<Case> {
    let heads = width / 64;
    vec![
        matmul::case(&[positions, width], &[width, 3 * width]),
        matmul::case(&[positions, width], &[width, vocabulary]),
        rms_norm::case(&[positions, width]),
        layer_norm::case(&[positions, width]),
        gelu::case(&[positions, ffn]),
        swiglu::case(&[positions, 2 * ffn]),
        softmax::case(&[positions, vocabulary]),
        cross_entropy::case(positions, vocabulary, 1, cross_entropy::Weights::Uniform, 0),
        cross_entropy::case(positions, vocabulary, 4, cross_entropy::Weights::Uniform, 0),
        patch_embedding::case(&[positions], vocabulary, width, 4),
        causal_attention::case([positions / sequence, sequence, sequence], [heads, heads, 64]),
        linear_cross_entropy::case(positions, width, vocabulary, 4),
    ]
}
