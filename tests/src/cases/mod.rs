//! Case tables, one file per op: shapes, placements, parameters, and beside each the reference and the cost.
//!
//! One table serves conformance of every backend (forward and backward in every dtype it computes), gradient checks in f64 with their
//! negative controls, and benches. [`all`] lists the cases of differentiable ops, [`direct`] those of primitives that no gradient passes
//! through; a test fails when a primitive of the contract or a differentiable op has none, or no reference.

mod adamw;
mod binary;
mod broadcast_to;
mod causal_attention;
mod concat;
mod copy;
mod cross_entropy;
mod fill;
mod gelu;
mod global_norm;
mod layer_norm;
mod linear;
mod linear_cross_entropy;
mod matmul;
mod narrow;
mod patch_embedding;
mod permute;
mod random;
mod reduce;
mod reshape;
mod rms_norm;
mod rope;
mod self_attention;
mod softmax;
mod swiglu;
mod unary;

use patchgpt_autograd::gradcheck::Options;
use patchgpt_autograd::{Result, Var};
use patchgpt_tensor::{DType, Device, Tensor};

use crate::array::{Array, Placement};

/// The types in which primitives compute.
const FLOATS: [DType; 2] = [DType::F64, DType::F32];
/// Tokens in a patch, up to the largest that was studied.
const PATCHES: [usize; 6] = [1, 2, 3, 4, 8, 16];
/// Moves logits of 1e4 by a few thousandths.
const STEP_OF_LARGE_LOGITS: f64 = 2e-7;
/// Head sizes of the models that there are presets for, and around them.
const HEADS: [usize; 6] = [16, 32, 64, 80, 96, 128];

/// A differentiable op of some inputs, through the public functions of autograd.
pub type Run = Box<dyn Fn(&[Var]) -> Result<Var> + Send + Sync>;

/// The reference's output.
pub type Forward = Box<dyn Fn(&[Array]) -> Array + Send + Sync>;

/// The reference's gradients, one for each input, given the output's gradient.
pub type Backward = Box<dyn Fn(&[Array], &Array) -> Vec<Array> + Send + Sync>;

/// What a gradient check must know of a case.
#[derive(Default)]
pub struct Check {
    /// Inputs whose gradient is zero by mathematics.
    pub zero_inputs: Vec<usize>,
    /// A relative step for inputs so large that the usual one would leave the curve; the usual one if `None`.
    pub step: Option<f64>,
    /// Inputs that are not finite here and there: these elements have no derivative.
    pub has_infinities: bool,
    /// Ops whose backward is the gradient of something else: what a mistake would compute, by name. Each must be rejected.
    pub mistakes: Vec<(&'static str, Run)>,
}

/// One use of a differentiable op.
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
    /// What a gradient check must know.
    pub check: Check,
}

/// One use of a primitive that no gradient passes through, or of a variant that has none.
pub struct Direct {
    /// The primitive.
    pub op: &'static str,
    /// What distinguishes the case.
    pub name: String,
    /// The types it is asked for.
    pub dtypes: &'static [DType],
    /// Runs the primitive; everything it wrote.
    pub run: DirectRun,
    /// What the reference says was written.
    pub expected: Box<dyn Fn(DType) -> Vec<Array> + Send + Sync>,
    /// Number of terms in the longest sum; `None` if the result is exact.
    pub reduction: Option<usize>,
    /// Floating-point operations.
    pub flops: f64,
    /// Elements read and written, each once.
    pub traffic: f64,
}

/// A primitive in a dtype on a device.
pub type DirectRun = Box<dyn Fn(DType, &Device) -> patchgpt_tensor::Result<Vec<Tensor>> + Send + Sync>;

impl Case {
    /// `op name`, for messages.
    pub fn label(&self) -> String {
        format!("{} {}", self.op, self.name)
    }

    /// Bytes read and written by the forward pass in `dtype`, each once.
    pub fn bytes(&self, dtype: DType) -> f64 {
        self.traffic * dtype.size() as f64
    }

    /// Magnitude of what is added up on the way to the output, which may cancel: partial sums of n products of numbers up to 1 that have
    /// random signs are as large as sqrt(n) times their mean magnitude.
    pub fn partial_sums(&self) -> f64 {
        match self.op {
            "matmul" | "linear" | "reduce" => 0.3 * (self.reduction as f64).sqrt(),
            _ => 1e-3,
        }
    }

    /// How gradients of this case are checked.
    pub fn options(&self) -> Options {
        let values: Vec<Array> = self.inputs.iter().map(|(x, placement)| placement.values(x)).collect();
        let zero_inputs = match (self.forward)(&values).data.is_empty() {
            // An output without elements depends on nothing.
            true => (0..values.len()).collect(),
            false => self.check.zero_inputs.clone(),
        };
        let step = self.check.step.unwrap_or(Options::default().step);
        let options = Options { zero_inputs, step, ..Options::default() };
        if self.check.has_infinities { options.kinks(|point| !point.value.is_finite()) } else { options }
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

impl Direct {
    /// `op name`, for messages.
    pub fn label(&self) -> String {
        format!("{} {}", self.op, self.name)
    }

    /// Bytes read and written in `dtype`, each once.
    pub fn bytes(&self, dtype: DType) -> f64 {
        self.traffic * dtype.size() as f64
    }
}

/// A named mistake.
fn mistake(name: &'static str, run: impl Fn(&[Var]) -> Result<Var> + Send + Sync + 'static) -> (&'static str, Run) {
    (name, Box::new(run))
}

/// Random contiguous inputs of the given shapes, in [-1, 1).
fn inputs(shapes: &[&[usize]]) -> Vec<(Array, Placement)> {
    let seed = shapes.iter().flat_map(|s| s.iter()).fold(17, |h: u64, &d| h.wrapping_mul(31).wrapping_add(d as u64));
    let random = |(i, s): (usize, &&[usize])| (Array::random(s, 1.0, seed + i as u64), Placement::Contiguous);
    shapes.iter().enumerate().map(random).collect()
}

/// Sum and norm of the inputs of a norm with an addend between x and the weight.
type SumAndNorm = Box<dyn Fn(&[Var]) -> Result<(Var, Var)> + Send + Sync>;

/// A norm's case as one of a norm with an addend: sum and norm one after the other in one output.
fn with_addend(norm: Case, run: SumAndNorm) -> Case {
    let Case { op, name, mut inputs, forward, backward, reduction, flops, traffic, check, .. } = norm;
    let x = &inputs[0].0;
    let (shape, n) = (x.shape.clone(), x.data.len());
    inputs.insert(1, self::inputs(&[&shape, &shape]).remove(1));
    /// The norm's own inputs: the sum in the place of x.
    fn of_norm(x: &[Array]) -> Vec<Array> {
        let sum = Array::from_fn(&x[0].shape, |i| x[0].data[i] + x[1].data[i]);
        std::iter::once(sum).chain(x[2..].iter().cloned()).collect()
    }
    Case {
        op,
        name: format!("{name} with an addend"),
        inputs,
        run: Box::new(move |x| {
            let (sum, normed) = run(x)?;
            Var::concat(&[&sum, &normed], 0)
        }),
        forward: Box::new(move |x| {
            let inputs = of_norm(x);
            let mut both = forward(&inputs);
            both.shape[0] *= 2;
            both.data.splice(..0, inputs[0].data.iter().copied());
            both
        }),
        backward: Box::new(move |x, d| {
            let (d_sum, d_normed) = d.data.split_at(d.data.len() / 2);
            let d_normed = Array { shape: x[0].shape.clone(), data: d_normed.to_vec() };
            let mut gradients = backward(&of_norm(x), &d_normed);
            gradients[0].data.iter_mut().zip(d_sum).for_each(|(d, more)| *d += more);
            gradients.insert(1, gradients[0].clone());
            gradients
        }),
        reduction,
        flops: flops + n as f64,
        traffic: traffic + 2.0 * n as f64,
        check,
    }
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
        unary::cases,
        binary::cases,
        reduce::cases,
        reshape::cases,
        permute::cases,
        narrow::cases,
        broadcast_to::cases,
        concat::cases,
        matmul::cases,
        linear::cases,
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

/// A case of every op whose first input has ten thousand elements or a few more.
pub fn large() -> Vec<Case> {
    let tables = [
        unary::large,
        binary::large,
        reduce::large,
        reshape::large,
        permute::large,
        narrow::large,
        broadcast_to::large,
        concat::large,
        matmul::large,
        linear::large,
        softmax::large,
        patch_embedding::large,
        rms_norm::large,
        layer_norm::large,
        rope::large,
        causal_attention::large,
        self_attention::large,
        gelu::large,
        swiglu::large,
        cross_entropy::large,
        linear_cross_entropy::large,
    ];
    tables.iter().flat_map(|table| table()).collect()
}

/// Every case of every primitive that no gradient passes through, and of the variants that have none.
pub fn direct() -> Vec<Direct> {
    let tables = [
        fill::direct,
        copy::direct,
        random::direct,
        binary::direct,
        reduce::direct,
        matmul::direct,
        adamw::direct,
        global_norm::direct,
    ];
    tables.iter().flat_map(|table| table()).collect()
}

/// A case of `op` made of any sizes and placements, for properties over random ones; `None` for an op without sizes to choose. The
/// first size may be 0.
pub fn sized(op: &str, sizes: [usize; 5], choice: usize, placements: [Placement; 3]) -> Option<Case> {
    let [a, b, c, d, e] = sizes;
    let [b1, c1, d1, e1] = [b, c, d, e].map(|size| size.max(1));
    let shape = &sizes[..1 + choice % 4];
    let shape: Vec<usize> = shape.iter().enumerate().map(|(i, &size)| size.max(usize::from(i > 0))).collect();
    let (rank, k) = (shape.len(), PATCHES[choice % PATCHES.len()]);
    let case = match op {
        "unary" => unary::sized(&shape, choice),
        "binary" => {
            // The second argument lacks leading dimensions or has size 1 in some.
            let narrowed = |(i, &size): (usize, &usize)| if (choice >> i) & 1 == 1 { 1 } else { size };
            let other: Vec<usize> = shape.iter().enumerate().map(narrowed).collect();
            binary::sized(&shape, &other[choice / 16 % (rank + 1)..], choice)
        }
        "reduce" => {
            let dims: Vec<usize> = (0..rank).filter(|i| (choice >> i) & 1 == 1).collect();
            reduce::sum(&shape, &dims)
        }
        "reshape" => reshape::case(&shape, &[shape.iter().product()]),
        "permute" => {
            let order: Vec<usize> = (0..rank).map(|i| (i + choice) % rank).collect();
            permute::case(&shape, &order)
        }
        "narrow" => {
            let dim = choice % rank;
            let start = e % shape[dim].max(1);
            narrow::case(&shape, dim, start, (shape[dim] - start.min(shape[dim])).min(1 + d))
        }
        "broadcast_to" => {
            let single = |(i, &size): (usize, &usize)| if (choice >> i) & 1 == 1 { 1 } else { size };
            let from: Vec<usize> = shape.iter().enumerate().map(single).collect();
            broadcast_to::case(&from, &shape)
        }
        "concat" => {
            let dim = choice % rank;
            let mut other = shape.clone();
            other[dim] = e1;
            concat::case(&[&shape, &other], dim)
        }
        "matmul" => match choice % 3 {
            0 => matmul::case(&[a, b], &[b, c]),
            1 => matmul::case(&[d1, a, b], &[d1, b, c]),
            _ => matmul::case(&[d1, a, b], &[b, c]),
        },
        "linear" => linear::case(&[a, b1], c1, choice.is_multiple_of(2)),
        "softmax" => softmax::case(&[a, b1, c1]),
        "gelu" => gelu::case(&shape),
        "swiglu" => swiglu::case(&[a, 2 * b1]),
        "rms_norm" => rms_norm::case(&[a, b1]),
        // Of two or three numbers, the variance can be close to nothing and magnify every rounding.
        "layer_norm" => layer_norm::case(&[a, b + 4]),
        "rope" => rope::case([a, b1, c1 % 5 + 1, 2 * d1]),
        "patch_embedding" => patch_embedding::case(&[a], b1, c1, k),
        "causal_attention" => {
            let groups = c1 % 3 + 1;
            causal_attention::case([a % 3, b1, b1 + e % 7], [groups * (choice % 3 + 1), groups, d1])
        }
        "self_attention" => {
            let groups = c1 % 3 + 1;
            self_attention::case(
                [a % 3, b1],
                [groups * (choice % 3 + 1), groups, 2 * (d1 % 9 + 1)],
                choice.is_multiple_of(2),
            )
        }
        "cross_entropy" => {
            let weights = [cross_entropy::Weights::Uniform, cross_entropy::Weights::Reciprocal][choice % 2];
            cross_entropy::case(a, b1, k, weights, e)
        }
        "linear_cross_entropy" => linear_cross_entropy::case(a, b1, c1, k),
        _ => return None,
    };
    Some(case.placed(&placements))
}

/// Cases of training size: N positions of width C with feed-forward width F and vocabulary V, heads of size 64.
pub fn training_size(positions: usize, sequence: usize, width: usize, ffn: usize, vocabulary: usize) -> Vec<Case> {
    let heads = width / 64;
    vec![
        matmul::case(&[positions, width], &[width, 3 * width]),
        matmul::case(&[positions, width], &[width, vocabulary]),
        rms_norm::case(&[positions, width]),
        layer_norm::case(&[positions, width]),
        linear::with_gelu(&[positions, width], ffn, true),
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

/// What makes a case.
pub type Make = Box<dyn Fn() -> Case>;

/// The ops whose speed is compared with other libraries (`benches/peers/run_ops.py`), under the names that they have there, at sizes for a
/// processor or for a card.
pub fn compared(card: bool) -> Vec<(String, Make)> {
    let mut ops: Vec<(String, Make)> = Vec::new();
    let mut add = |name: String, make: Make| ops.push((name, make));
    let attention: Vec<[usize; 4]> = match card {
        // 16384 positions of width about 2048, as short sequences or as one long one.
        true => [64, 80, 96, 128]
            .into_iter()
            .flat_map(|d| [512, 1024, 2048, 4096, 8192, 16384].map(|t| [16384 / t, 2048 / d, t, d]))
            .collect(),
        false => vec![[8, 6, 256, 64], [1, 8, 512, 64], [1, 8, 2048, 64], [1, 8, 8192, 64]],
    };
    for [b, h, t, d] in attention {
        add(
            format!("attention B={b} H={h} T={t} D={d}"),
            Box::new(move || causal_attention::case([b, t, t], [h, h, d])),
        );
    }
    let (width, ffn, vocabulary) = if card { (2048, 5504, 32_000) } else { (768, 2048, 32_000) };
    let positions = if card { 8192 } else { 1024 };
    // On a processor as they are in a step, and too large for any cache.
    let rows = if card { vec![16384] } else { vec![4096, 24576] };
    for k in [1, 4] {
        add(
            format!("head and loss {positions} x {width} x {vocabulary}, K={k}"),
            Box::new(move || linear_cross_entropy::case(positions, width, vocabulary, k)),
        );
    }
    for k in [1, 4] {
        let case = move || cross_entropy::case(positions, vocabulary, k, cross_entropy::Weights::Uniform, 0);
        add(format!("cross-entropy {positions} x {vocabulary}, K={k}"), Box::new(case));
    }
    for rows in rows {
        add(format!("LayerNorm {rows} x {width}"), Box::new(move || layer_norm::case(&[rows, width])));
        add(format!("RMSNorm {rows} x {width}"), Box::new(move || rms_norm::case(&[rows, width])));
        add(format!("GELU {rows} x {ffn}"), Box::new(move || gelu::case(&[rows, ffn])));
        add(format!("SwiGLU {rows} x {ffn}"), Box::new(move || swiglu::case(&[rows, 2 * ffn])));
    }
    add(
        format!("embedding {positions} of {vocabulary} x {width}"),
        Box::new(move || patch_embedding::case(&[positions], vocabulary, width, 1)),
    );
    if card {
        for [m, k, n] in [[8192, 8192, 8192], [16384, 2048, 6144], [16384, 2048, 11008]] {
            add(format!("gemm {m} x {k} x {n}"), Box::new(move || matmul::case(&[m, k], &[k, n])));
        }
        // GPT-2's feed-forward layer at its width and at 1.3B's.
        for [m, k, n] in [[16384, 768, 3072], [16384, 2048, 8192]] {
            let name = format!("gemm, bias and GELU {m} x {k} x {n}");
            add(name, Box::new(move || linear::with_gelu(&[m, k], n, true)));
        }
    }
    ops
}
