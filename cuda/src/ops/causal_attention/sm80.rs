//! The variant `sm80`: tensor cores through mma.sync, tiles by asynchronous copies; every device has it. Heads up to 128
//! in bf16. kernels/causal_attention{,_d_q,_d_kv}.cu.

use patchgpt_tensor::{DType, Result};

use super::{
    Gradients, Implementation, Kernel, Pass, Problem, Tile, Tiles, Variant, launch_backward, launch_forward,
    specialisations_of, tile, tiles,
};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};

static FORWARD: KernelSource = kernel_source!("causal_attention", "causal_attention.cuh", "causal_attention_mma.cuh");
static D_Q: KernelSource = kernel_source!("causal_attention_d_q", "causal_attention.cuh", "causal_attention_mma.cuh");
static D_KV: KernelSource = kernel_source!("causal_attention_d_kv", "causal_attention.cuh", "causal_attention_mma.cuh");

pub(super) const VARIANT: Variant<Implementation> = Variant {
    name: "sm80",
    about: "bf16 on tensor cores by mma.sync, heads up to 128",
    implementation: Implementation {
        takes: |_, problem| {
            problem.q.dtype() == DType::BF16 && problem.scale as f32 > 0.0 && of_width(problem.q.dim(3)).is_some()
        },
        forward,
        backward,
        specialisations,
    },
};

/// Tiles on tensor cores, WARPS warps a block. The accumulators of an owned row and the scores of a visited tile stay
/// in registers: a thread has (own / 64) * (head + visit) / 2 of them forward, (own / 64) * (head + 2 visit) / 2 for
/// d_q and (own / 64) * (2 head + 2 visit) / 2 for d_k and d_v, of 255 in all. A block's shared memory stays below 99
/// KiB, which every architecture from sm_80 on has.
const TILES: [Tiles; 8] = [
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

/// The smallest tiles that hold heads of this size.
fn of_width(width: usize) -> Option<&'static Tiles> {
    TILES.iter().find(|tiles| width <= tiles.head)
}

fn kernel(pass: Pass, tiles: &Tiles) -> Kernel {
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

fn of_problem(pass: Pass, problem: &Problem) -> Kernel {
    kernel(pass, of_width(problem.q.dim(3)).unwrap_or(&TILES[TILES.len() - 1]))
}

fn forward(cuda: &Cuda, problem: &Problem) -> Result<()> {
    launch_forward(cuda, problem, &of_problem(Pass::Forward, problem))
}

fn backward(cuda: &Cuda, problem: &Problem, gradients: &Gradients) -> Result<()> {
    launch_backward(cuda, problem, gradients, &of_problem(Pass::DQ, problem), &of_problem(Pass::DKv, problem))
}

fn specialisations() -> Vec<Specialisation> {
    specialisations_of(&TILES, kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_in_the_shared_memory_of_every_architecture() {
        for pass in Pass::ALL {
            for tiles in &TILES {
                // 8.6, 8.9 and 12.0 have the least.
                assert!(kernel(pass, tiles).shared <= 99 << 10, "head size {}", tiles.head);
            }
        }
    }

    #[test]
    fn heads_find_the_smallest_tiles_that_hold_them() {
        let head = |width| of_width(width).map(|tiles| tiles.head);
        assert_eq!([1, 72, 128, 129].map(head), [Some(16), Some(80), Some(128), None]);
    }
}
