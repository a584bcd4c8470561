//! Matrix products of a training step, ours and those of the `gemm` crate, in turns on one thread: GFLOP/s of the best round of each.
//!
//!     cargo run --release --manifest-path benches/peers/rust/Cargo.toml --features gemm --bin gemm_products

use std::time::Instant;

use patchgpt_tensor::{Destination, Device, Tensor};

/// Rounds, and multiplications of a round, about.
const ROUNDS: usize = 7;
const WORK: f64 = 5e9;

/// How the factors lie: both row by row, b column by column, a column by column.
#[derive(Clone, Copy, Debug)]
enum Layout {
    NN,
    NT,
    TN,
}

/// Sizes m, k, n; whether the product is added to the output.
const PRODUCTS: [(Layout, [usize; 3], bool); 11] = [
    (Layout::NN, [2048, 384, 384], false),
    (Layout::NN, [2048, 384, 1536], false),
    (Layout::NT, [2048, 384, 1536], false),
    (Layout::NT, [2048, 1536, 384], false),
    (Layout::TN, [384, 2048, 1536], true),
    (Layout::TN, [1536, 2048, 384], true),
    (Layout::NT, [1024, 384, 8192], false),
    (Layout::TN, [8192, 1024, 384], true),
    (Layout::NN, [1, 384, 1536], false),
    (Layout::NT, [1, 384, 8192], false),
    (Layout::NN, [8, 384, 1536], false),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::cpu_with_threads(1)?;
    println!("{device}\n\n| m x k x n | layout | own | crate | own / crate |\n| --- | --- | ---: | ---: | ---: |");
    for (layout, [m, k, n], add) in PRODUCTS {
        let values =
            |rows: usize, cols: usize| -> Vec<f32> { (0..rows * cols).map(|i| (i % 61) as f32 / 61.0 - 0.5).collect() };
        let (a, b) = (values(m, k), values(k, n));
        // (row, column) strides of a and of b.
        let ([a_row, a_col], [b_row, b_col]) = match layout {
            Layout::NN => ([k, 1], [n, 1]),
            Layout::NT => ([k, 1], [1, k]),
            Layout::TN => ([1, m], [n, 1]),
        };
        let tensor = |x: &[f32], rows: usize, cols: usize, turned: bool| match turned {
            false => Tensor::from_slice(x, &[rows, cols], &device),
            true => Tensor::from_slice(x, &[cols, rows], &device)?.t(),
        };
        let left = tensor(&a, m, k, a_col != 1)?;
        let right = tensor(&b, k, n, b_col != 1)?;
        let out = tensor(&values(m, n), m, n, false)?;
        let mut theirs = values(m, n);
        let flops = 2.0 * (m * k * n) as f64;
        let times = (WORK / flops).clamp(1.0, 20_000.0) as usize;
        let mut best = [f64::INFINITY; 2];
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            for _ in 0..times {
                left.matmul_into(&right, 1.0, Destination { tensor: &out, accumulate: add })?;
            }
            best[0] = best[0].min(begun.elapsed().as_secs_f64());
            let begun = Instant::now();
            for _ in 0..times {
                // SAFETY: three separate vectors of m * n, m * k and k * n values.
                unsafe {
                    let [a_row, a_col, b_row, b_col] = [a_row, a_col, b_row, b_col].map(|stride| stride as isize);
                    gemm::gemm(
                        m,
                        n,
                        k,
                        theirs.as_mut_ptr(),
                        1,
                        n as isize,
                        add,
                        a.as_ptr(),
                        a_col,
                        a_row,
                        b.as_ptr(),
                        b_col,
                        b_row,
                        1.0,
                        1.0,
                        false,
                        false,
                        false,
                        gemm::Parallelism::None,
                    );
                }
            }
            best[1] = best[1].min(begun.elapsed().as_secs_f64());
        }
        let [own, other] = best.map(|seconds| flops * times as f64 / seconds * 1e-9);
        let added = if add { ", added" } else { "" };
        println!("| {m} x {k} x {n} | {layout:?}{added} | {own:.1} | {other:.1} | {:.2} |", own / other);
    }
    Ok(())
}
