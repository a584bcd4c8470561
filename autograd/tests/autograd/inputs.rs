//! Inputs of the tests: random f64 tensors in several memory layouts.

use patchgpt_tensor::{DType, Device, Distribution, Tensor};

/// One device for all tests of a binary.
pub(crate) fn device() -> Device {
    static DEVICE: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    DEVICE.get_or_init(|| Device::cpu().unwrap()).clone()
}

/// Normal numbers.
pub(crate) fn normal(shape: &[usize], seed: u64) -> Tensor {
    Tensor::random(shape, Distribution::Normal { mean: 0.0, std: 1.0 }, seed, 0, DType::F64, &device()).unwrap()
}

/// Numbers between 0.5 and 2.
pub(crate) fn positive(shape: &[usize], seed: u64) -> Tensor {
    Tensor::random(shape, Distribution::Uniform { low: 0.5, high: 2.0 }, seed, 0, DType::F64, &device()).unwrap()
}

/// Tensors of one shape in several layouts: contiguous, with the dimensions reversed in memory, with gaps, and, where a dimension is
/// larger than 1, repeating one slice with stride 0.
pub(crate) fn layouts(shape: &[usize], make: fn(&[usize], u64) -> Tensor, seed: u64) -> Vec<Tensor> {
    let mut all = vec![make(shape, seed)];
    let rank = shape.len();
    if rank >= 2 {
        let reversed: Vec<usize> = (0..rank).rev().collect();
        let turned: Vec<usize> = shape.iter().rev().copied().collect();
        all.push(make(&turned, seed + 1).permute(&reversed).unwrap());
    }
    if rank >= 1 {
        let mut wide = shape.to_vec();
        wide[rank - 1] += 2;
        all.push(make(&wide, seed + 2).narrow(rank - 1, 1, shape[rank - 1]).unwrap());
    }
    if let Some(d) = shape.iter().position(|&size| size > 1) {
        let mut thin = shape.to_vec();
        thin[d] = 1;
        all.push(make(&thin, seed + 3).broadcast_to(shape).unwrap());
    }
    all
}
