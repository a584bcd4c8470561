//! A card's ceilings, measured: a large product by NVIDIA's library, and a copy far beyond the second-level cache.
//!
//! Rates on paper are not reached: an H100 makes about 800 of its 989 TFLOP/s in bf16 and copies at about 3.0 of its 3.35 TB/s. Kernels are therefore
//! held against what the same card was seen to do in the same minute. The factors are random numbers: with zeros a card draws less power and clocks
//! higher.

use std::time::Instant;

use cudarc::driver::sys;
use patchgpt_tensor::{DType, Limits, Result};

use crate::blas::{Factor, Gemm};
use crate::device::Cuda;
use crate::memory::CudaMemory;
use crate::ops::gemm;

/// Rows, columns and depth of the product: 1.1 TFLOP, over a millisecond on the fastest card.
pub(crate) const SIZE: usize = 8192;
/// Bytes of the copy's source, and of its target: at least four times any second-level cache.
pub(crate) const COPIED: usize = 512 << 20;
/// Times that each is asked for between two waits, and how often that is timed.
const CALLS: usize = 4;
const ROUNDS: usize = 12;

/// The ceilings for products in `dtype`, f32 or bf16, of `size` rows, columns and depth, and for copies of `copied` bytes.
pub(crate) fn limits(cuda: &Cuda, dtype: DType, size: usize, copied: usize) -> Result<Limits> {
    let flops_per_second = {
        let bytes = size * size * dtype.size();
        let memory =
            [cuda.context().allocate(bytes)?, cuda.context().allocate(bytes)?, cuda.context().allocate(bytes)?];
        for (seed, memory) in [1, 2].into_iter().zip(&memory) {
            cuda.upload(memory.address(), &random(size * size, dtype, seed))?;
        }
        let factor =
            |m: &CudaMemory| Factor { address: m.address(), dtype, transposed: false, leading: size, stride: 0 };
        let [a, b, c] = [factor(&memory[0]), factor(&memory[1]), factor(&memory[2])];
        let product = Gemm { m: size, n: size, k: size, a, b, c, alpha: 1.0, beta: 0.0, batch: 1 };
        2.0 * (size as f64).powi(3) / fastest(cuda, || gemm::product(cuda, &product))?
    };
    let (from, to) = (cuda.context().allocate(copied)?, cuda.context().allocate(copied)?);
    let copy = || {
        cuda.bind()?;
        // SAFETY: both are that long and live until the stream has passed: they are freed in its order.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to.address(), from.address(), copied, cuda.stream()) };
        cuda.check(result, || format!("copying {copied} bytes on the device"))
    };
    let bytes_per_second = 2.0 * copied as f64 / fastest(cuda, copy)?;
    Ok(Limits { flops_per_second, bytes_per_second, copied_bytes: 2 * copied })
}

/// Seconds of a call of the fastest round.
fn fastest(cuda: &Cuda, call: impl Fn() -> Result<()>) -> Result<f64> {
    call()?; // what the library makes at its first call
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        cuda.context().synchronize()?;
        let begun = Instant::now();
        for _ in 0..CALLS {
            call()?;
        }
        cuda.context().synchronize()?;
        best = best.min(begun.elapsed().as_secs_f64() / CALLS as f64);
    }
    Ok(best)
}

/// The bytes of `count` numbers in [-1, 1), by Marsaglia's xorshift.
fn random(count: usize, dtype: DType, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    match dtype {
        DType::BF16 => (0..count).flat_map(|_| half::bf16::from_f32(next()).to_le_bytes()).collect(),
        _ => (0..count).flat_map(|_| next().to_le_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_numbers() {
        let cuda = Cuda::emulated().expect("the emulated device");
        for dtype in [DType::F32, DType::BF16] {
            let found = limits(&cuda, dtype, 32, 4096).expect("rates");
            assert!(found.flops_per_second.is_finite() && found.flops_per_second > 0.0, "{found:?}");
            assert!(found.bytes_per_second.is_finite() && found.bytes_per_second > 0.0, "{found:?}");
            assert_eq!(found.copied_bytes, 8192);
        }
        let refused = limits(&cuda, DType::F64, 32, 4096).expect_err("no products in f64");
        assert!(refused.to_string().contains("f32 or bf16"), "{refused}");
    }

    #[test]
    fn random_numbers_fill_the_interval() {
        let bytes = random(1000, DType::F32, 1);
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        assert_eq!(values.len(), 1000);
        assert!(values.iter().all(|x| (-1.0..1.0).contains(x)));
        assert!(values.iter().any(|&x| x < -0.9) && values.iter().any(|&x| x > 0.9));
        assert_eq!(random(10, DType::BF16, 1).len(), 20);
    }
}
