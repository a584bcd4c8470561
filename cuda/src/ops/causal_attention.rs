//! Causal attention, forward and backward: on tensor cores in bf16 (kernels/causal_attention{,_d_q,_d_kv}.cu), else
//! plain (kernels/causal_attention_plain.cu). kernels/causal_attention.cuh has the formulas and what a block owns and
//! visits.
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

use bytemuck::{Pod, Zeroable};
use patchgpt_tensor::{DType, Destination, Error, Result, Tensor};

use crate::device::Cuda;
use crate::launch::{Define, KernelSource, Launch, Specialisation, kernel_source};

static FORWARD: KernelSource = kernel_source!("causal_attention", "causal_attention.cuh", "causal_attention_mma.cuh");
static D_Q: KernelSource = kernel_source!("causal_attention_d_q", "causal_attention.cuh", "causal_attention_mma.cuh");
static D_KV: KernelSource = kernel_source!("causal_attention_d_kv", "causal_attention.cuh", "causal_attention_mma.cuh");
static PLAIN: KernelSource = kernel_source!("causal_attention_plain", "causal_attention.cuh", "rows.cuh");

/// What one launch computes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    DQ,
    DKv,
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

/// Tiles on tensor cores, WARPS warps a block. The accumulators of an owned row and the scores of a visited tile stay
/// in registers: a thread has (own / 64) * (head + visit) / 2 of them forward, (own / 64) * (head + 2 visit) / 2 for
/// d_q and (own / 64) * (2 head + 2 visit) / 2 for d_k and d_v, of 255 in all. A block's shared memory stays below 99
/// KiB, which every architecture from sm_80 on has.
const TENSOR_CORE: [Tiles; 8] = [
    tiles(16, tile(128, 64), tile(128, 64), tile(64, 64)),
    tiles(32, tile(128, 64), tile(128, 64), tile(64, 64)),
    tiles(48, tile(128, 64), tile(64, 64), tile(64, 64)),
    tiles(64, tile(128, 64), tile(128, 32), tile(64, 64)),
    tiles(80, tile(128, 64), tile(64, 64), tile(64, 64)),
    tiles(96, tile(128, 64), tile(64, 64), tile(64, 64)),
    tiles(112, tile(128, 48), tile(64, 32), tile(64, 32)),
    tiles(128, tile(128, 32), tile(64, 32), tile(64, 32)),
];
const WARPS: usize = 4;

/// Tiles of the plain kernels, for head sizes up to the first number, in f32 and in f64.
const PLAIN_TILES: [(usize, Tile, Tile); 4] = [
    (64, tile(64, 32), tile(32, 32)),
    (128, tile(32, 32), tile(16, 16)),
    (192, tile(32, 16), tile(16, 16)),
    (256, tile(16, 16), tile(16, 16)),
];
const PLAIN_THREADS: usize = 256;

/// A kernel chosen for one pass.
struct Kernel {
    specialisation: Specialisation,
    entry: &'static str,
    own: usize,
    threads: usize,
    shared: usize,
}

impl Kernel {
    fn tensor_core(pass: Pass, tiles: &Tiles) -> Kernel {
        let (head, Tile { own, visit }) = (tiles.head, tiles.of(pass));
        let (source, entry, rows, numbers) = match pass {
            Pass::Forward => (&FORWARD, "causal_attention", own + 2 * visit, 0),
            Pass::DQ => (&D_Q, "causal_attention_d_q", 2 * own + 4 * visit, 0),
            Pass::DKv => (&D_KV, "causal_attention_d_kv", 2 * own + 4 * visit, 4 * visit),
        };
        let specialisation = Specialisation::new(source)
            .define("HEAD", head)
            .define("OWN", own)
            .define("VISIT", visit)
            .define("WARPS", WARPS);
        // Rows of bf16, 8 further apart than they are long, and statistics in f32.
        Kernel { specialisation, entry, own, threads: WARPS * 32, shared: rows * (head + 8) * 2 + numbers * 4 }
    }

    fn plain(pass: Pass, x: DType, width: usize) -> Option<Kernel> {
        let size = x.accumulator().size();
        let (_, single, double) = PLAIN_TILES.iter().find(|&&(head, ..)| width <= head)?;
        let Tile { own, visit } = if size == 8 { *double } else { *single };
        let head = width.max(1).next_multiple_of(16);
        let (entry, rows, numbers) = match pass {
            Pass::Forward => ("causal_attention", own + 2 * visit, 0),
            Pass::DQ => ("causal_attention_d_q", 2 * own + 2 * visit, 0),
            Pass::DKv => ("causal_attention_d_kv", 2 * own + 2 * visit, 2 * visit),
        };
        let specialisation =
            Specialisation::new(&PLAIN).define("X", x).define("HEAD", head).define("OWN", own).define("VISIT", visit);
        // Rows and scores in the accumulator's type, 16 bytes further apart than they are long.
        let pad = 16 / size;
        let shared = (rows * (head + pad) + own * (visit + pad) + numbers) * size;
        Some(Kernel { specialisation, entry, own, threads: PLAIN_THREADS, shared })
    }

    /// The kernel for elements `x`, heads of size `width` and a scale; tensor cores take bf16, heads up to 128 and
    /// scales above 0.
    fn choose(op: &'static str, pass: Pass, x: DType, width: usize, scale: f64) -> Result<Kernel> {
        if !matches!(x, DType::F32 | DType::F64 | DType::BF16) {
            return Err(Error::dtype(op, "f32, bf16 or f64", x));
        }
        let tiles = TENSOR_CORE.iter().find(|t| width <= t.head);
        match tiles.filter(|_| x == DType::BF16 && scale as f32 > 0.0) {
            Some(tiles) => Ok(Kernel::tensor_core(pass, tiles)),
            None => Kernel::plain(pass, x, width)
                .ok_or_else(|| Error::shape(op, format!("heads of at most 256 elements on this device, got {width}"))),
        }
    }

    fn begin<'a>(&self, cuda: &'a Cuda, rows: usize, heads: usize) -> Launch<'a> {
        let Specialisation { source, defines } = &self.specialisation;
        let launch = cuda.kernel(source, self.entry).threads(self.threads).shared(self.shared);
        let launch = launch.blocks(rows.div_ceil(self.own) * heads);
        defines.iter().fold(launch, |launch, &(name, value): &(_, Define)| launch.define(name, value))
    }
}

/// Specialisations that tests and benches use.
pub(crate) fn specialisations() -> Vec<Specialisation> {
    let passes = [Pass::Forward, Pass::DQ, Pass::DKv];
    let tensor_core =
        passes.into_iter().flat_map(|pass| TENSOR_CORE.iter().map(move |tiles| Kernel::tensor_core(pass, tiles)));
    let heads = [(DType::F32, 16), (DType::F32, 64), (DType::F32, 80), (DType::F32, 128), (DType::F32, 256)];
    let others = [(DType::BF16, 64), (DType::F64, 16), (DType::F64, 64), (DType::F64, 80), (DType::F64, 128)];
    // All passes of the plain path are one file.
    let plain = heads.into_iter().chain(others).filter_map(|(x, head)| Kernel::plain(Pass::Forward, x, head));
    tensor_core.chain(plain).map(|kernel| kernel.specialisation).collect()
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
    /// What forward and backward share; `rows` are all tensors whose rows must be aligned for 16-byte accesses.
    fn new(op: &'static str, cuda: &Cuda, tensors: [&Tensor; 5], rows: &[&Tensor], scale: f64) -> Result<Attention> {
        let [q, k, v, out, lse] = tensors;
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
            aligned: i32::from(tensors[..4].iter().chain(rows).all(|x| cuda.aligned(x))),
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
    let op = "causal_attention";
    let attention = Attention::new(op, cuda, [q, k, v, out, lse], &[], scale)?;
    let kernel = Kernel::choose(op, Pass::Forward, q.dtype(), q.dim(3), scale)?;
    kernel
        .begin(cuda, q.dim(1), q.dim(0) * q.dim(2))
        .write(out)
        .write(lse)
        .read(q)
        .read(k)
        .read(v)
        .value(attention)
        .launch()
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
    let op = "causal_attention_backward";
    if q.is_empty() {
        // No query sees the keys: their gradients are zero.
        return [d_k, d_v].iter().filter(|d| !d.accumulate).try_for_each(|d| super::fill::fill(cuda, d.tensor, 0.0));
    }
    let rows = [d_out, d_q.tensor, d_k.tensor, d_v.tensor];
    let attention = Attention {
        d_out: strides(d_out),
        d_q: strides(d_q.tensor),
        d_k: strides(d_k.tensor),
        d_v: strides(d_v.tensor),
        ..Attention::new(op, cuda, [q, k, v, out, lse], &rows, scale)?
    };
    let [batch, queries, heads, width] = [0, 1, 2, 3].map(|d| q.dim(d));
    let delta = cuda.workspace(batch * heads * queries * q.dtype().accumulator().size())?;
    let kernel = Kernel::choose(op, Pass::DQ, q.dtype(), width, scale)?;
    kernel
        .begin(cuda, queries, batch * heads)
        .write(d_q.tensor)
        .value(i32::from(d_q.accumulate))
        .workspace(&delta)
        .read(d_out)
        .read(q)
        .read(k)
        .read(v)
        .read(out)
        .read(lse)
        .value(attention)
        .launch()?;
    let kernel = Kernel::choose(op, Pass::DKv, q.dtype(), width, scale)?;
    kernel
        .begin(cuda, k.dim(1), batch * k.dim(2))
        .write(d_k.tensor)
        .value(i32::from(d_k.accumulate))
        .write(d_v.tensor)
        .value(i32::from(d_v.accumulate))
        .read(d_out)
        .read(q)
        .read(k)
        .read(v)
        .read(lse)
        .workspace(&delta)
        .value(attention)
        .launch()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a block can have on every architecture from sm_80 on (8.6, 8.9 and 12.0 have the least).
    const SHARED_MEMORY: usize = 99 << 10;
    const PASSES: [Pass; 3] = [Pass::Forward, Pass::DQ, Pass::DKv];

    #[test]
    fn tiles_fit_in_the_shared_memory_of_every_architecture() {
        for pass in PASSES {
            for tiles in &TENSOR_CORE {
                assert!(Kernel::tensor_core(pass, tiles).shared <= SHARED_MEMORY, "head size {}", tiles.head);
            }
            // In f64, which is for checks, large heads take more.
            for (x, heads) in [(DType::F32, 256), (DType::BF16, 256), (DType::F64, 128)] {
                for width in 0..=heads {
                    let kernel = Kernel::plain(pass, x, width).expect("a kernel");
                    assert!(kernel.shared <= SHARED_MEMORY, "head size {width} in {x}");
                }
            }
        }
    }

    #[test]
    fn heads_find_the_smallest_tiles_that_hold_them() {
        let head = |x, width, scale| {
            let kernel = Kernel::choose("attention", Pass::Forward, x, width, scale).expect("a kernel");
            let head = kernel.specialisation.defines.iter().find(|(name, _)| *name == "HEAD").expect("HEAD").1;
            (kernel.specialisation.source.name, head.to_string())
        };
        assert_eq!(head(DType::BF16, 72, 0.1), ("causal_attention", "80".into()));
        assert_eq!(head(DType::BF16, 128, 0.1), ("causal_attention", "128".into()));
        assert_eq!(head(DType::BF16, 129, 0.1), ("causal_attention_plain", "144".into()));
        assert_eq!(head(DType::BF16, 64, -0.1), ("causal_attention_plain", "64".into()));
        assert_eq!(head(DType::F32, 0, 0.1), ("causal_attention_plain", "16".into()));
        assert!(Kernel::choose("attention", Pass::Forward, DType::F32, 257, 0.1).is_err());
        assert!(Kernel::choose("attention", Pass::Forward, DType::F16, 64, 0.1).is_err());
    }
}
