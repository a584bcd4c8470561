//! The variant `sm90`: wgmma, fed by TMA through rings of tiles, for compute capability 9.0. Heads of 49 to 128 in bf16
//! whose rows are multiples of 16 bytes. kernels/causal_attention_sm90{,_d_q,_d_kv}.cu.
//!
//! Shown on the emulator and by ptxas; no card has run it yet. It may come first in the table all the same: no block
//! waits for another, and every sum has one owner and one order, as in the other variants.

use patchgpt_tensor::{DType, Result, Tensor};

use super::{
    Attention, Gradients, Implementation, Kernel, Pass, Problem, Tile, Tiles, Variant, specialisations_of, tile, tiles,
};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};
use crate::tensor_map::TensorMap;

static FORWARD: KernelSource =
    kernel_source!("causal_attention_sm90", "causal_attention.cuh", "causal_attention_sm90.cuh", "hopper.cuh");
static D_Q: KernelSource =
    kernel_source!("causal_attention_sm90_d_q", "causal_attention.cuh", "causal_attention_sm90.cuh", "hopper.cuh");
static D_KV: KernelSource =
    kernel_source!("causal_attention_sm90_d_kv", "causal_attention.cuh", "causal_attention_sm90.cuh", "hopper.cuh");

pub(super) const VARIANT: Variant<Implementation> = Variant {
    name: "sm90",
    about: "bf16 on tensor cores by wgmma and TMA, compute capability 9.0, heads of 49 to 128",
    implementation: Implementation { takes, forward, backward, specialisations },
};

/// Tiles for head sizes up to the first number: OWN is 64 rows for each consumer warpgroup. A thread of a consumer holds
/// f32 accumulators and pairs of bf16 weights, head / 2 + visit / 2 + visit / 4 of them forward, head / 2 + visit + visit
/// / 4 for d_q and head + visit + visit / 2 for d_k and d_v, of 160 registers with three consumers and 240 with two. With
/// larger tiles ptxas spills or lets no product overlap, which the table of resources forbids.
const TILES: [Tiles; 4] = [
    tiles(64, tile(192, 128), tile(128, 128), tile(128, 64)),
    tiles(80, tile(192, 96), tile(128, 96), tile(128, 64)),
    tiles(96, tile(192, 96), tile(128, 96), tile(128, 64)),
    tiles(128, tile(128, 128), tile(128, 64), tile(128, 64)),
];
/// Smaller heads leave too much of a tile empty: they are better off with `sm80`.
const SMALLEST: usize = 49;
const STAGES: usize = 2;
/// Columns of a panel of the 128-byte swizzle.
const PANEL: usize = 64;
/// Bytes for mbarriers, behind the tiles.
const MBARRIERS: usize = 256;
/// Bytes of a stage of d_k and d_v for statistics in f32, which keep stages at multiples of 1024.
const STATISTICS: usize = 1024;
/// Statistics of a head between the passes of backward are padded to a multiple of so many rows.
const STATISTICS_ROWS: usize = 64;

fn of_width(width: usize) -> Option<&'static Tiles> {
    TILES.iter().find(|tiles| (SMALLEST..=tiles.head).contains(&width))
}

fn takes(cuda: &Cuda, problem: &Problem) -> bool {
    // The instructions are those of 9.0 alone: later devices have others.
    cuda.info().compute_capability == (9, 0)
        && problem.q.dtype() == DType::BF16
        && problem.scale as f32 > 0.0
        && of_width(problem.q.dim(3)).is_some()
        && problem.rows().all(|x| cuda.mappable(x))
}

fn kernel(pass: Pass, tiles: &Tiles) -> Kernel {
    let (head, Tile { own, visit }) = (tiles.head, tiles.of(pass));
    let (source, entry, rows, numbers) = match pass {
        Pass::Forward => (&FORWARD, "causal_attention", own + 2 * STAGES * visit, 0),
        Pass::DQ => (&D_Q, "causal_attention_d_q", 2 * own + 2 * STAGES * visit, 0),
        Pass::DKv => (&D_KV, "causal_attention_d_kv", 2 * own + 2 * STAGES * visit, STAGES * STATISTICS),
    };
    let specialisation = Specialisation::new(source)
        .define("HEAD", head)
        .define("OWN", own)
        .define("VISIT", visit)
        .define("STAGES", STAGES);
    // Rows of whole panels in bf16.
    let shared = rows * head.next_multiple_of(PANEL) * 2 + numbers + MBARRIERS;
    // The consumers and a producer.
    Kernel { specialisation, entry, own, threads: (own / 64 + 1) * 128, shared }
}

/// Tiles of `rows` rows of one head of a tensor [B, T, H, D].
fn map(cuda: &Cuda, x: &Tensor, rows: usize) -> Result<TensorMap> {
    cuda.tensor_map(x, &[1, rows, 1, PANEL])
}

fn of_problem(problem: &Problem) -> &'static Tiles {
    of_width(problem.q.dim(3)).unwrap_or(&TILES[TILES.len() - 1])
}

fn forward(cuda: &Cuda, problem: &Problem) -> Result<()> {
    let Problem { q, k, v, out, lse, .. } = *problem;
    let [batch, queries, heads, _] = problem.sizes();
    let tiles = of_problem(problem);
    let Tile { own, visit } = tiles.forward;
    kernel(Pass::Forward, tiles)
        .begin(cuda, queries, batch * heads)
        .write(out)
        .write(lse)
        .value(map(cuda, q, own)?)
        .value(map(cuda, k, visit)?)
        .value(map(cuda, v, visit)?)
        .value(Attention::new(cuda, problem)?)
        .launch()
}

fn backward(cuda: &Cuda, problem: &Problem, gradients: &Gradients) -> Result<()> {
    let Problem { q, k, v, out, lse, .. } = *problem;
    let Gradients { d_out, d_q, d_k, d_v } = *gradients;
    let [batch, queries, heads, _] = problem.sizes();
    let [keys, groups] = problem.key_sizes();
    let tiles = of_problem(problem);
    let attention = Attention::backward(cuda, problem, gradients)?;
    let statistics = batch * heads * queries.next_multiple_of(STATISTICS_ROWS) * size_of::<f32>();
    let (lse2, delta) = (cuda.workspace(statistics)?, cuda.workspace(statistics)?);
    let Tile { own, visit } = tiles.d_q;
    kernel(Pass::DQ, tiles)
        .begin(cuda, queries, batch * heads)
        .write(d_q.tensor)
        .value(i32::from(d_q.accumulate))
        .workspace(&lse2)
        .workspace(&delta)
        .value(map(cuda, d_out, own)?)
        .value(map(cuda, q, own)?)
        .value(map(cuda, k, visit)?)
        .value(map(cuda, v, visit)?)
        .read(d_out)
        .read(out)
        .read(lse)
        .value(attention)
        .launch()?;
    let Tile { own, visit } = tiles.d_kv;
    kernel(Pass::DKv, tiles)
        .begin(cuda, keys, batch * groups)
        .write(d_k.tensor)
        .value(i32::from(d_k.accumulate))
        .write(d_v.tensor)
        .value(i32::from(d_v.accumulate))
        .value(map(cuda, d_out, visit)?)
        .value(map(cuda, q, visit)?)
        .value(map(cuda, k, own)?)
        .value(map(cuda, v, own)?)
        .workspace(&lse2)
        .workspace(&delta)
        .value(attention)
        .launch()
}

fn specialisations() -> Vec<Specialisation> {
    specialisations_of(&TILES, kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_in_shared_memory_and_registers() {
        for tiles in &TILES {
            for pass in Pass::ALL {
                let Tile { own, visit } = tiles.of(pass);
                assert!(kernel(pass, tiles).shared <= 227 << 10, "head size {}", tiles.head);
                assert!(
                    [128, 192].contains(&own) && visit <= 128,
                    "two or three consumers; products of so many columns"
                );
            }
            // Blocks of the first pass write the statistics of whole tiles of the second.
            assert!(tiles.d_q.own.is_multiple_of(STATISTICS_ROWS) && STATISTICS_ROWS.is_multiple_of(tiles.d_kv.visit));
        }
    }

    #[test]
    fn heads_find_the_smallest_tiles_that_hold_them() {
        let head = |width| of_width(width).map(|tiles| tiles.head);
        assert_eq!([48, 49, 72, 128, 129].map(head), [None, Some(64), Some(80), Some(128), None]);
    }
}
