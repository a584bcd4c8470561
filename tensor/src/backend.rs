//! The contract: every primitive that a device provides, with formula, shapes, dtypes and accumulation type.
//!
//! The checked methods of [`Tensor`] (`ops/`) are the only callers: they have already made sure that shapes fit, that dtypes
//! are equal where they must be, that all tensors live on this device, that outputs do not overlap themselves or, unless a
//! primitive says so, an input; that host-given indices are in range; and they bump versions. A primitive that does not
//! compute a dtype answers [`Error::DType`](crate::Error::DType).
//!
//! Conventions: a *row* is the last dimension; "rows" means that the last dimension of every tensor named so has stride 1, while
//! the others may have any strides. N is the product of the leading dimensions. Sums, norms, softmax statistics and losses
//! are kept in [`DType::accumulator`]: f64 for f64, else f32; statistics (`rstd`, `mean`, `lse`, `losses`) have that dtype.
//! Where nothing else is said, tensors are f32, f64 or bf16 and all of one dtype; a destination may also have the accumulator's dtype, as
//! gradients of a bf16 model's weights do. Results in bf16 are computed in f32 and rounded to nearest even.
//! Sums are taken in an order that depends on shapes alone. NaN and infinity propagate as IEEE 754 arithmetic has them.

use std::any::Any;

use crate::{DType, Error, Limits, Memory, Replay, Result, ScatterIndex, Tensor};

/// The target that is not scored (PyTorch's convention); the only negative target allowed.
pub const IGNORE_INDEX: i32 = -100;

/// Names of the primitives of [`Backend`]; conformance tests and benches cover each.
pub const PRIMITIVES: &[&str] = &[
    "fill",
    "copy",
    "random",
    "unary",
    "binary",
    "reduce",
    "matmul",
    "linear",
    "softmax",
    "patch_embedding",
    "rms_norm",
    "layer_norm",
    "rope",
    "causal_attention",
    "gelu",
    "swiglu",
    "cross_entropy",
    "linear_cross_entropy",
    "adamw",
    "global_norm",
];

/// An output: written, or added to if `accumulate`.
#[derive(Clone, Copy)]
pub struct Destination<'a> {
    /// The tensor that receives the result.
    pub tensor: &'a Tensor,
    /// Whether the result is added to what is there (in the tensor's dtype).
    pub accumulate: bool,
}

impl<'a> Destination<'a> {
    /// A destination that is overwritten.
    pub fn write(tensor: &'a Tensor) -> Self {
        Destination { tensor, accumulate: false }
    }

    /// A destination that is added to.
    pub fn add(tensor: &'a Tensor) -> Self {
        Destination { tensor, accumulate: true }
    }
}

/// Element-wise functions of one argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unary {
    /// `-x`
    Neg,
    /// `e^x`
    Exp,
    /// `ln x`
    Log,
    /// `sqrt x`
    Sqrt,
    /// `tanh x`
    Tanh,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `x^2`
    Square,
    /// `1 / x`
    Recip,
    /// `x * mul + add`, with the constants rounded to the dtype
    Affine {
        /// Factor.
        mul: f64,
        /// Summand.
        add: f64,
    },
}

/// Element-wise functions of two arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
    /// The larger; NaN if either is NaN.
    Max,
    /// The smaller; NaN if either is NaN.
    Min,
}

/// Reductions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Sum, in the accumulator dtype; 0 over nothing.
    Sum,
    /// Maximum; NaN if any is NaN, -inf over nothing.
    Max,
}

/// Distributions of [`Backend::random`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Uniform in [low, high).
    Uniform {
        /// Lower end, included.
        low: f64,
        /// Upper end, excluded.
        high: f64,
    },
    /// Normal, by the Box-Muller transform.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
}

/// Arguments of [`Backend::adamw`]. All tensors but the scalars are flat, of equal length and dtype (f32 or f64).
#[derive(Clone, Copy)]
pub struct AdamW<'a> {
    /// Updated in place.
    pub parameters: &'a Tensor,
    /// Read only.
    pub gradients: &'a Tensor,
    /// Running mean of the gradient, updated in place.
    pub first_moment: &'a Tensor,
    /// Running mean of the squared gradient, updated in place.
    pub second_moment: &'a Tensor,
    /// Learning rate, 0-d, dtype of the parameters.
    pub learning_rate: &'a Tensor,
    /// Factor that clips the gradient, 0-d, dtype of the parameters (see [`Backend::global_norm`]).
    pub clip: &'a Tensor,
    /// Number of this update, counted from 1, 0-d i32.
    pub step: &'a Tensor,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The first so many parameters decay, the rest do not.
    pub decay_len: usize,
    /// What a bf16 model computes with, written by the same update.
    pub rounded: Option<Rounded<'a>>,
}

/// The rounded copy of master weights.
#[derive(Clone, Copy)]
pub struct Rounded<'a> {
    /// Output, bf16, flat, as long as the parameters, which are f32.
    pub tensor: &'a Tensor,
    /// How they are rounded.
    pub rounding: Rounding,
}

/// How f32 becomes bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// To nearest even.
    #[default]
    Nearest,
    /// To one of the two neighbours, to the one of greater magnitude with the share of their distance that x lies beyond the other as the probability, so that
    /// small updates are kept in the mean: element i becomes the upper half of `bits(x) + r`, r being the 16-bit number `i % 8` (the lower half of a
    /// word first) of the Philox4x32-10 block with the counter `(i / 8, low word; high word; step; 1)` keyed by `seed`. NaN and infinity as to nearest.
    Stochastic {
        /// Key of the random numbers; `step` is the update's.
        seed: u64,
    },
}

/// What is added to the input of a norm before it, as in a residual connection.
#[derive(Clone, Copy)]
pub struct Residual<'a> {
    /// Rows [N, C], x's dtype.
    pub addend: &'a Tensor,
    /// Output, rows [N, C], x's dtype: `x + addend`, rounded, which is normalised in place of x.
    pub sum: &'a Tensor,
}

/// Arguments of [`Backend::linear`]. All tensors are of one dtype.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// Output [N, O], contiguous.
    pub out: &'a Tensor,
    /// Output [N, O], contiguous: GELU of `out`.
    pub activated: Option<&'a Tensor>,
    /// [N, I], any strides.
    pub x: &'a Tensor,
    /// [O, I], any strides.
    pub weight: &'a Tensor,
    /// [O], any stride.
    pub bias: Option<&'a Tensor>,
}

/// Arguments of [`Backend::linear_cross_entropy`].
#[derive(Clone, Copy)]
pub struct LinearCrossEntropy<'a> {
    /// [N, C], rows.
    pub x: &'a Tensor,
    /// [V, C], rows.
    pub weight: &'a Tensor,
    /// i32 [N, K], contiguous.
    pub targets: &'a Tensor,
    /// [K], accumulator dtype, contiguous.
    pub target_weights: &'a Tensor,
    /// 0-d, accumulator dtype: what a row's loss is multiplied with, 1 / M for the mean over the step's M valid targets.
    pub scale: &'a Tensor,
    /// Output [N], accumulator dtype: the rows' losses before `scale`.
    pub losses: &'a Tensor,
    /// Output [N, C]: gradient of `scale * sum(losses)` for x.
    pub d_x: Option<Destination<'a>>,
    /// Output [V, C]: gradient of `scale * sum(losses)` for the weight.
    pub d_weight: Option<Destination<'a>>,
}

/// The primitives of a device. See the module's documentation for the conventions.
pub trait Backend: Any + Send + Sync {
    /// What the device is, for people: `cpu (2 threads, avx2)`.
    fn name(&self) -> String;

    /// Initialised memory of `bytes` bytes with unspecified contents.
    fn allocate(&self, bytes: usize) -> Result<Box<dyn Memory>>;

    /// Copies host bytes into the contiguous `out`.
    fn upload(&self, out: &Tensor, bytes: &[u8]) -> Result<()>;

    /// Copies the contiguous `x` into host bytes, once everything asked before is done.
    fn download(&self, x: &Tensor, bytes: &mut [u8]) -> Result<()>;

    /// Waits until everything asked of the device is done.
    fn synchronize(&self) -> Result<()>;

    /// What the device can do at most in `dtype`, measured now with its own threads, which takes a second or two; `None` where it has no way to measure.
    fn limits(&self, _dtype: DType) -> Option<Limits> {
        None
    }

    /// The most bytes that live tensors have held at one time; `None` where they are not counted.
    fn memory_peak(&self) -> Option<usize> {
        None
    }

    /// Runs `body`; the bytes of memory that [`Backend::capture`] needs for it, `None` where nothing can be recorded. See [`Device::rehearse`](crate::Device::rehearse).
    fn rehearse(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Option<usize>> {
        body()?;
        Ok(None)
    }

    /// Records what `body` asks of the device instead of running it; what it allocates lies in `memory` bytes of the recording's own. See
    /// [`Device::capture`](crate::Device::capture).
    fn capture(&self, _memory: usize, _body: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Replay>> {
        Err(Error::Backend { device: self.name(), message: "this device records nothing to be replayed".into() })
    }

    /// Every element of `out` (any dtype, any strides) becomes `value`, rounded to nearest.
    fn fill(&self, out: &Tensor, value: f64) -> Result<()>;

    /// `out = x`, converted from any dtype to any dtype, any strides on both sides. Floats round to nearest even; float to integer
    /// truncates toward zero and saturates, NaN becomes 0; i64 to i32 saturates.
    fn copy(&self, out: &Tensor, x: &Tensor) -> Result<()>;

    /// Fills the contiguous f32 or f64 `out`: element i is made from block `offset + i` of Philox4x32-10 keyed by `seed`, the block's words
    /// (w0, w1, w2, w3) giving `u = ((w0 << 32 | w1) >> 11) * 2^-53` and `v` likewise from (w2, w3). Uniform: `low + (high - low) * u`; normal:
    /// `mean + std * sqrt(-2 ln(1 - u)) * cos(2 pi v)`; computed in f64, then rounded (a uniform that rounds up to `high` becomes the next number below).
    fn random(&self, out: &Tensor, distribution: Distribution, seed: u64, offset: u64) -> Result<()>;

    /// `out = op(x)`: any strides, equal shapes. `out` may be `x` itself (the same layout).
    fn unary(&self, out: &Tensor, op: Unary, x: &Tensor) -> Result<()>;

    /// `out (+)= op(a, b)`: equal shapes, any strides (broadcast arguments have stride 0).
    /// `out` may be `a` or `b` itself (the same layout).
    fn binary(&self, out: Destination, op: Binary, a: &Tensor, b: &Tensor) -> Result<()>;

    /// `out (+)= op over the dimensions in which out has size 1 and x does not`: equal ranks, any strides.
    fn reduce(&self, out: Destination, op: Reduction, x: &Tensor) -> Result<()>;

    /// `out (+)= alpha * a @ b`: a [..., m, k], b [..., k, n], out [..., m, n] with equal leading dimensions, any strides,
    /// accumulated in the accumulator dtype. k = 0 gives zeros.
    fn matmul(&self, out: Destination, a: &Tensor, b: &Tensor, alpha: f64) -> Result<()>;

    /// `out = x weight^T + bias` over the last dimension and, if it is wanted, `activated = gelu(out)`; x [N, I], weight [O, I], bias [O], out and
    /// activated [N, O]. The product is accumulated in the accumulator dtype. A device may add the bias, and apply GELU, before it rounds.
    fn linear(&self, args: Linear) -> Result<()> {
        crate::ops::linear_by_parts(self, args)
    }

    /// Rows: `out_i = e^(x_i - max) / sum_j e^(x_j - max)`. A row that is -inf throughout gives NaN.
    fn softmax(&self, out: &Tensor, x: &Tensor) -> Result<()>;

    /// Rows: `d_x_i (+)= y_i * (d_y_i - sum_j d_y_j y_j)` with y the softmax's output.
    fn softmax_backward(&self, d_x: Destination, d_y: &Tensor, y: &Tensor) -> Result<()>;

    /// Rows: `out[n] = (1/K) * sum_k table[ids[n, k]]`, out [N, C], table [V, C], ids i32 [N, K] contiguous and in range. The mean is accumulated in the
    /// accumulator dtype. K = 1 is the plain embedding. Source: Shao et al., arXiv 2407.12665, section 3.
    fn patch_embedding(&self, out: &Tensor, table: &Tensor, ids: &Tensor) -> Result<()>;

    /// Rows: `d_table[v] (+)= (1/K) * sum over positions p of v, in ascending order, of d_out[p / K]`, d_table [V, C], d_out [N, C].
    /// Without `accumulate`, rows of ids that do not occur become zero.
    fn patch_embedding_backward(
        &self,
        d_table: Destination,
        d_out: &Tensor,
        index: &ScatterIndex,
        patch: usize,
    ) -> Result<()>;

    /// Rows: `rstd = 1 / sqrt(mean(x^2) + eps)`, `out = x * rstd * weight`; x and out [N, C], weight [C], rstd [N]. With a residual the sum takes the place of x,
    /// the same to the bit as if it had been computed before. Source: Zhang and Sennrich, arXiv 1910.07467.
    fn rms_norm(
        &self,
        out: &Tensor,
        rstd: &Tensor,
        x: &Tensor,
        residual: Option<Residual>,
        weight: &Tensor,
        eps: f64,
    ) -> Result<()>;

    /// Rows, with `x^ = x * rstd` and `g = d_out * weight`: `d_x (+)= rstd * (g - x^ * mean(g * x^))`, `d_weight (+)= sum over rows of d_out * x^`.
    /// `d_x` may be `d_out` itself.
    fn rms_norm_backward(
        &self,
        d_x: Option<Destination>,
        d_weight: Option<Destination>,
        d_out: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        rstd: &Tensor,
    ) -> Result<()>;

    /// Rows: `rstd = 1 / sqrt(var(x) + eps)` (biased variance, two passes over the row), `out = (x - mean) * rstd * weight + bias`; x and out [N, C], weight and bias [C], mean
    /// and rstd [N]. A residual as in [`Backend::rms_norm`]. Source: Ba et al., arXiv 1607.06450.
    #[allow(clippy::too_many_arguments)]
    fn layer_norm(
        &self,
        out: &Tensor,
        mean: &Tensor,
        rstd: &Tensor,
        x: &Tensor,
        residual: Option<Residual>,
        weight: &Tensor,
        bias: &Tensor,
        eps: f64,
    ) -> Result<()>;

    /// Rows, with `x^ = (x - mean) * rstd` and `g = d_out * weight`: `d_x (+)= rstd * (g - mean(g) - x^ * mean(g * x^))`,
    /// `d_weight (+)= sum over rows of d_out * x^`, `d_bias (+)= sum over rows of d_out`. `d_x` may be `d_out` itself.
    #[allow(clippy::too_many_arguments)]
    fn layer_norm_backward(
        &self,
        d_x: Option<Destination>,
        d_weight: Option<Destination>,
        d_bias: Option<Destination>,
        d_out: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        mean: &Tensor,
        rstd: &Tensor,
    ) -> Result<()>;

    /// Rows: rotates pairs (i, i + D/2) of each head, x and out [B, T, H, D], D even, cos and sin [T, D/2] contiguous, accumulator dtype:
    /// `out_i = x_i cos - x_(i+D/2) sin`, `out_(i+D/2) = x_(i+D/2) cos + x_i sin`. `inverse` turns the other way, which is also the backward. `out` may be
    /// `x` itself. Source: Su et al., arXiv 2104.09864, with halves paired as transformers does.
    fn rope(&self, out: &Tensor, x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) -> Result<()>;

    /// Rows: `out = softmax(scale * q k^T + mask) v` per head without a T x S matrix in memory, and `lse` [B, H, T], the log-sum-exp of each masked row of scores.
    /// q and out [B, T, H, D]; k and v [B, S, G, D] with H a multiple of G, query head h reading key head h / (H/G);
    /// T <= S, and query t sees the keys 0..=t + S - T. Source: Dao, arXiv 2307.08691.
    fn causal_attention(
        &self,
        out: &Tensor,
        lse: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        scale: f64,
    ) -> Result<()>;

    /// Rows, with `p = e^(scale * q k^T - lse)`, `delta = rowsum(d_out * out)`, `ds = p * (d_out v^T - delta)`:
    /// `d_v (+)= p^T d_out`, `d_q (+)= scale * ds k`, `d_k (+)= scale * ds^T q`, heads of a group summed in order.
    /// T and S as in the forward; the scores are recomputed in blocks.
    #[allow(clippy::too_many_arguments)]
    fn causal_attention_backward(
        &self,
        d_q: Destination,
        d_k: Destination,
        d_v: Destination,
        d_out: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        lse: &Tensor,
        scale: f64,
    ) -> Result<()>;

    /// Rows: `out = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`. Source: Hendrycks and Gimpel, arXiv 1606.08415.
    fn gelu(&self, out: &Tensor, x: &Tensor) -> Result<()>;

    /// Rows: `d_x (+)= d_out * gelu'(x)`.
    fn gelu_backward(&self, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()>;

    /// Rows: `out = silu(gate) * up`, `silu(g) = g / (1 + e^-g)`, with x [N, 2F] holding gate in its first F columns and up in the last F, out [N, F].
    /// Source: Shazeer, arXiv 2002.05202.
    fn swiglu(&self, out: &Tensor, x: &Tensor) -> Result<()>;

    /// Rows, s = sigmoid(gate): `d_gate (+)= d_out * up * s * (1 + gate * (1 - s))`, `d_up (+)= d_out * gate * s`; d_x [N, 2F], d_out [N, F].
    fn swiglu_backward(&self, d_x: Destination, d_out: &Tensor, x: &Tensor) -> Result<()>;

    /// Rows: `lse[n] = log sum_v e^logits[n, v]`, `losses[n] = sum over k with a valid target of w_k * (lse[n] - logits[n, targets[n, k]])`. logits [N, V], targets i32 [N, K]
    /// contiguous, each in 0..V or [`IGNORE_INDEX`], weights [K] contiguous, lse and losses [N]. One pass for the log-sum-exp and K gathers;
    /// a row without a valid target has loss 0.
    fn cross_entropy(
        &self,
        losses: &Tensor,
        lse: &Tensor,
        logits: &Tensor,
        targets: &Tensor,
        weights: &Tensor,
    ) -> Result<()>;

    /// Rows, with n = sum of w_k over the valid k: `d_logits[n, v] (+)= d_losses[n] * (n * e^(logits[n, v] - lse[n]) - sum of w_k with targets[n, k] = v)`;
    /// d_losses [N], accumulator dtype, any stride. `d_logits` may be `logits` itself.
    #[allow(clippy::too_many_arguments)]
    fn cross_entropy_backward(
        &self,
        d_logits: Destination,
        d_losses: &Tensor,
        logits: &Tensor,
        lse: &Tensor,
        targets: &Tensor,
        weights: &Tensor,
    ) -> Result<()>;

    /// The head and its loss, `cross_entropy(x @ weight^T)`, in chunks of rows so that logits never exist beyond a chunk, and both
    /// gradients in the same pass: one product for the logits, two for the gradients, each logit read and written once in between.
    fn linear_cross_entropy(&self, args: LinearCrossEntropy) -> Result<()> {
        crate::ops::linear_cross_entropy_by_chunks(self, crate::ops::HOST_LOGITS, args)
    }

    /// One AdamW update of flat storage, with g = clip * gradient and t the step:
    /// `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
    /// `p -= lr * (decay * p)` then `p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)`,
    /// decay being `weight_decay` for the first `decay_len` elements and 0 after; then `rounded` becomes p, rounded. Source: Loshchilov and Hutter, arXiv
    /// 1711.05101.
    fn adamw(&self, args: AdamW) -> Result<()>;

    /// `norm = sqrt(sum x^2)` of the contiguous x, and `clip = min(1, max_norm / (norm + 1e-6))`, the factor that brings the norm down to `max_norm`; both 0-d, x's dtype.
    fn global_norm(&self, norm: &Tensor, clip: &Tensor, x: &Tensor, max_norm: f64) -> Result<()>;
}

/// Refuses dtypes that a computing primitive does not take.
pub(crate) fn floating(op: &'static str, dtype: DType) -> Result<()> {
    match dtype {
        DType::F32 | DType::F64 | DType::BF16 => Ok(()),
        other => Err(Error::dtype(op, "f32, f64 or bf16", other)),
    }
}
