//! Causal attention, forward and backward. kernels/causal_attention.cuh has the formulas and what a block owns and
//! visits; the implementations are the rows of [`VARIANTS`], one file each.
//!
//! With P = B H T (S - (T - 1) / 2) visible scores and N = B H T D, M = B S G D the elements of q and of k:
//!
//! | | FLOPs | elements moved, each once |
//! | --- | --- | --- |
//! | forward | 4 D P (2 products) | read N + 2 M, write N; f32 write B H T |
//! | d_q | 6 D P (3 products) | read 3 N + 2 M, write N; f32 read and write B H T |
//! | d_k, d_v | 8 D P (4 products) | read 2 N + 2 M, write 2 M; f32 read 2 B H T |
//!
//! Five products would do for a backward that keeps all three gradients in one pass; benches count those 10 D P. Blocks
//! visit k and v T / OWN times (q and d_out S / OWN times) beyond that, out of the L2 cache as long as a head fits
//! there. Tiles on the diagonal are computed whole: at T = S the FLOPs grow by about the factor 1 + (OWN + VISIT) / (2
//! T).

mod composed;
mod portable;
mod sm80;
mod sm90;

use bytemuck::{Pod, Zeroable};
use patchgpt_tensor::{Destination, Error, Result, Tensor};

use crate::device::Cuda;
use crate::launch::{Define, Launch, Specialisation};
use crate::variants::{Family, Variant, names};

/// An implementation: for which problems it is, and its passes. One file and one row of [`VARIANTS`] add another.
pub(crate) struct Implementation {
    /// Whether it computes this problem on this device.
    takes: fn(&Cuda, &Problem) -> bool,
    forward: fn(&Cuda, &Problem) -> Result<()>,
    backward: fn(&Cuda, &Problem, &Gradients) -> Result<()>,
    /// What tests and benches use of it.
    specialisations: fn() -> Vec<Specialisation>,
}

/// The implementations. The first that takes a problem computes it, unless one is chosen by name.
const VARIANTS: &[Variant<Implementation>; 4] = &[sm90::VARIANT, sm80::VARIANT, portable::VARIANT, composed::VARIANT];

/// The names, for [`Cuda::with_kernel`].
pub(crate) const FAMILY: Family = Family { name: "attention", variants: &names(VARIANTS) };

/// What one launch computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Forward,
    DQ,
    DKv,
}

impl Pass {
    const ALL: [Pass; 3] = [Pass::Forward, Pass::DQ, Pass::DKv];
}

/// Rows that a block owns, and rows of the other side that it visits at a time.
#[derive(Clone, Copy)]
struct Tile {
    own: usize,
    visit: usize,
}

const fn tile(own: usize, visit: usize) -> Tile {
    Tile { own, visit }
}

/// Tiles of the passes for head sizes up to `head`.
struct Tiles {
    head: usize,
    forward: Tile,
    d_q: Tile,
    d_kv: Tile,
}

impl Tiles {
    fn of(&self, pass: Pass) -> Tile {
        match pass {
            Pass::Forward => self.forward,
            Pass::DQ => self.d_q,
            Pass::DKv => self.d_kv,
        }
    }
}

const fn tiles(head: usize, forward: Tile, d_q: Tile, d_kv: Tile) -> Tiles {
    Tiles { head, forward, d_q, d_kv }
}

/// A kernel chosen for one pass.
struct Kernel {
    specialisation: Specialisation,
    entry: &'static str,
    own: usize,
    threads: usize,
    shared: usize,
}

impl Kernel {
    fn begin<'a>(&self, cuda: &'a Cuda, rows: usize, heads: usize) -> Launch<'a> {
        let Specialisation { source, defines } = &self.specialisation;
        let launch = cuda.kernel(source, self.entry).threads(self.threads).shared(self.shared);
        let launch = launch.blocks(rows.div_ceil(self.own) * heads);
        defines.iter().fold(launch, |launch, &(name, value): &(_, Define)| launch.define(name, value))
    }
}

/// Specialisations that tests and benches use.
pub(crate) fn specialisations() -> Vec<Specialisation> {
    VARIANTS.iter().flat_map(|variant| (variant.implementation.specialisations)()).collect()
}

/// Those of a variant that has a kernel for every pass and every row of its tiles.
fn specialisations_of(tiles: &[Tiles], kernel: fn(Pass, &Tiles) -> Kernel) -> Vec<Specialisation> {
    Pass::ALL.iter().flat_map(|&pass| tiles.iter().map(move |tiles| kernel(pass, tiles).specialisation)).collect()
}

/// The tensors of both directions: q, out [B, T, H, D]; k, v [B, S, G, D]; lse [B, H, T].
struct Problem<'a> {
    op: &'static str,
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    out: &'a Tensor,
    lse: &'a Tensor,
    scale: f64,
    /// The other tensors with rows of D: gradients.
    others: Vec<&'a Tensor>,
}

impl Problem<'_> {
    /// B, T, H, D.
    fn sizes(&self) -> [usize; 4] {
        [0, 1, 2, 3].map(|d| self.q.dim(d))
    }

    /// S, G.
    fn key_sizes(&self) -> [usize; 2] {
        [1, 2].map(|d| self.k.dim(d))
    }

    /// Every tensor with rows of D.
    fn rows(&self) -> impl Iterator<Item = &Tensor> {
        [self.q, self.k, self.v, self.out].into_iter().chain(self.others.iter().copied())
    }
}

/// What backward takes and gives besides: d_out, d_q like q; d_k, d_v like k.
struct Gradients<'a> {
    d_out: &'a Tensor,
    d_q: Destination<'a>,
    d_k: Destination<'a>,
    d_v: Destination<'a>,
}

/// The implementation for a problem.
fn choose(cuda: &Cuda, problem: &Problem) -> Result<&'static Implementation> {
    let Problem { op, q, scale, .. } = problem;
    let what = || format!("{op} of q {:?} {}, scale {scale}", q.shape(), q.dtype());
    cuda.variant_for(&FAMILY, VARIANTS, |kernel| (kernel.takes)(cuda, problem), what)
}

/// Strides of batch, position and head, in elements.
type Strides = [i64; 3];

/// `Attention` of kernels/causal_attention.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Attention {
    queries: i32,
    keys: i32,
    heads: i32,
    groups: i32,
    width: i32,
    aligned: i32,
    scale: f32,
    unused: i32,
    exact_scale: f64,
    q: Strides,
    k: Strides,
    v: Strides,
    out: Strides,
    lse: Strides,
    d_out: Strides,
    d_q: Strides,
    d_k: Strides,
    d_v: Strides,
}

/// Strides of a [B, T, H, D] tensor.
fn strides(x: &Tensor) -> Strides {
    [0, 1, 2].map(|d| x.strides()[d] as i64)
}

impl Attention {
    fn new(cuda: &Cuda, problem: &Problem) -> Result<Attention> {
        let Problem { op, q, k, v, out, lse, scale, .. } = *problem;
        let size = |n: usize| {
            i32::try_from(n).ok().filter(|&n| n < 1 << 30).ok_or_else(|| {
                let shapes = format!("got q {:?} and k {:?}", q.shape(), k.shape());
                Error::shape(op, format!("dimensions below 2^30 expected on this device, {shapes}"))
            })
        };
        Ok(Attention {
            queries: size(q.dim(1))?,
            keys: size(k.dim(1))?,
            heads: size(q.dim(2))?,
            groups: size(k.dim(2))?,
            width: size(q.dim(3))?,
            aligned: i32::from(problem.rows().all(|x| cuda.aligned(x))),
            scale: scale as f32,
            exact_scale: scale,
            q: strides(q),
            k: strides(k),
            v: strides(v),
            out: strides(out),
            lse: [lse.strides()[0] as i64, 1, lse.strides()[1] as i64],
            ..Attention::default()
        })
    }

    fn backward(cuda: &Cuda, problem: &Problem, gradients: &Gradients) -> Result<Attention> {
        Ok(Attention {
            d_out: strides(gradients.d_out),
            d_q: strides(gradients.d_q.tensor),
            d_k: strides(gradients.d_k.tensor),
            d_v: strides(gradients.d_v.tensor),
            ..Attention::new(cuda, problem)?
        })
    }
}

/// One launch of a kernel with the arguments of the sm_80 and the portable files.
fn launch_forward(cuda: &Cuda, problem: &Problem, kernel: &Kernel) -> Result<()> {
    let [batch, queries, heads, _] = problem.sizes();
    kernel
        .begin(cuda, queries, batch * heads)
        .write(problem.out)
        .write(problem.lse)
        .read(problem.q)
        .read(problem.k)
        .read(problem.v)
        .value(Attention::new(cuda, problem)?)
        .launch()
}

/// The two launches of a backward with the arguments of the sm_80 and the portable files.
fn launch_backward(cuda: &Cuda, problem: &Problem, gradients: &Gradients, d_q: &Kernel, d_kv: &Kernel) -> Result<()> {
    let Problem { q, k, v, out, lse, .. } = *problem;
    let [batch, queries, heads, _] = problem.sizes();
    let [keys, groups] = problem.key_sizes();
    let attention = Attention::backward(cuda, problem, gradients)?;
    let delta = cuda.workspace(batch * heads * queries * q.dtype().accumulator().size())?;
    d_q.begin(cuda, queries, batch * heads)
        .write(gradients.d_q.tensor)
        .value(i32::from(gradients.d_q.accumulate))
        .workspace(&delta)
        .read(gradients.d_out)
        .read(q)
        .read(k)
        .read(v)
        .read(out)
        .read(lse)
        .value(attention)
        .launch()?;
    d_kv.begin(cuda, keys, batch * groups)
        .write(gradients.d_k.tensor)
        .value(i32::from(gradients.d_k.accumulate))
        .write(gradients.d_v.tensor)
        .value(i32::from(gradients.d_v.accumulate))
        .read(gradients.d_out)
        .read(q)
        .read(k)
        .read(v)
        .read(lse)
        .workspace(&delta)
        .value(attention)
        .launch()
}

/// See [`Backend::causal_attention`](patchgpt_tensor::Backend::causal_attention).
pub(crate) fn forward(
    cuda: &Cuda,
    out: &Tensor,
    lse: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
) -> Result<()> {
    let problem = Problem { op: "causal_attention", q, k, v, out, lse, scale, others: Vec::new() };
    if q.is_empty() {
        return Ok(());
    }
    (choose(cuda, &problem)?.forward)(cuda, &problem)
}

/// See [`Backend::causal_attention_backward`](patchgpt_tensor::Backend::causal_attention_backward).
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    cuda: &Cuda,
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
) -> Result<()> {
    if q.is_empty() {
        // No query sees the keys: their gradients are zero.
        return [d_k, d_v].iter().filter(|d| !d.accumulate).try_for_each(|d| super::fill::fill(cuda, d.tensor, 0.0));
    }
    let others = vec![d_out, d_q.tensor, d_k.tensor, d_v.tensor];
    let problem = Problem { op: "causal_attention_backward", q, k, v, out, lse, scale, others };
    (choose(cuda, &problem)?.backward)(cuda, &problem, &Gradients { d_out, d_q, d_k, d_v })
}
