//! The variant `portable`: without tensor cores, in f32, f64 and bf16, heads up to 256, any scale.
//! kernels/causal_attention_plain.cu.

use patchgpt_tensor::{DType, Error, Result};

use super::{Gradients, Implementation, Kernel, Pass, Problem, Tile, Variant, launch_backward, launch_forward, tile};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};

static PLAIN: KernelSource = kernel_source!("causal_attention_plain", "causal_attention.cuh", "rows.cuh");

pub(super) const VARIANT: Variant<Implementation> = Variant {
    name: "portable",
    about: "f32, f64 and bf16 without tensor cores, heads up to 256",
    implementation: Implementation {
        // It says itself what it does not compute.
        takes: |_, _| true,
        forward,
        backward,
        specialisations,
    },
};

/// Tiles for head sizes up to the first number, in f32 and in f64.
const TILES: [(usize, Tile, Tile); 4] = [
    (64, tile(64, 32), tile(32, 32)),
    (128, tile(32, 32), tile(16, 16)),
    (192, tile(32, 16), tile(16, 16)),
    (256, tile(16, 16), tile(16, 16)),
];
const THREADS: usize = 256;

fn kernel(pass: Pass, x: DType, width: usize) -> Option<Kernel> {
    let size = x.accumulator().size();
    let (_, single, double) = TILES.iter().find(|&&(head, ..)| width <= head)?;
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
    Some(Kernel { specialisation, entry, own, threads: THREADS, shared })
}

fn of_problem(pass: Pass, problem: &Problem) -> Result<Kernel> {
    let (x, width) = (problem.q.dtype(), problem.q.dim(3));
    if !matches!(x, DType::F32 | DType::F64 | DType::BF16) {
        return Err(Error::dtype(problem.op, "f32, bf16 or f64", x));
    }
    let message = || format!("heads of at most 256 elements on this device, got {width}");
    kernel(pass, x, width).ok_or_else(|| Error::shape(problem.op, message()))
}

fn forward(cuda: &Cuda, problem: &Problem) -> Result<()> {
    launch_forward(cuda, problem, &of_problem(Pass::Forward, problem)?)
}

fn backward(cuda: &Cuda, problem: &Problem, gradients: &Gradients) -> Result<()> {
    launch_backward(cuda, problem, gradients, &of_problem(Pass::DQ, problem)?, &of_problem(Pass::DKv, problem)?)
}

fn specialisations() -> Vec<Specialisation> {
    let heads = [(DType::F32, 16), (DType::F32, 64), (DType::F32, 80), (DType::F32, 128), (DType::F32, 256)];
    let others = [(DType::BF16, 64), (DType::F64, 16), (DType::F64, 64), (DType::F64, 80), (DType::F64, 128)];
    // All passes are one file.
    let kernels = heads.into_iter().chain(others).filter_map(|(x, head)| kernel(Pass::Forward, x, head));
    kernels.map(|kernel| kernel.specialisation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_in_the_shared_memory_of_every_architecture() {
        for pass in Pass::ALL {
            // In f64, which is for checks, large heads take more.
            for (x, heads) in [(DType::F32, 256), (DType::BF16, 256), (DType::F64, 128)] {
                for width in 0..=heads {
                    let kernel = kernel(pass, x, width).expect("a kernel");
                    // 8.6, 8.9 and 12.0 have the least.
                    assert!(kernel.shared <= 99 << 10, "head size {width} in {x}");
                }
            }
        }
        assert!(kernel(Pass::Forward, DType::F32, 257).is_none());
    }
}
