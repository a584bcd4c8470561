//! Shapes and strides of operands as kernels take them, with as few dimensions as they allow.

use bytemuck::{Pod, Zeroable};
use patchgpt_tensor::{MAX_RANK, Tensor};

/// The common shape of `N` operands and the strides of each, by value; `Strided<N>` in `prelude.cuh`.
///
/// Dimensions of size 1 are gone and neighbours that are one run of addresses in all operands are merged, so that contiguous operands have rank 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strided<const N: usize> {
    /// Number of elements.
    pub count: u64,
    /// Number of dimensions, at least 1.
    pub rank: u64,
    /// Sizes of the dimensions, those from `rank` on being 1.
    pub shape: [u64; MAX_RANK],
    /// Strides of each operand, in elements.
    pub strides: [[u64; MAX_RANK]; N],
}

// SAFETY: all fields are integers and all bit patterns are valid.
unsafe impl<const N: usize> Zeroable for Strided<N> {}
// SAFETY: repr(C) of u64 alone, so without padding; Copy and 'static.
unsafe impl<const N: usize> Pod for Strided<N> {}

impl<const N: usize> Strided<N> {
    /// The operands, which have one shape.
    pub fn of(operands: [&Tensor; N]) -> Strided<N> {
        let shape = operands[0].shape();
        let strides: [&[usize]; N] = operands.map(Tensor::strides);
        Strided::new(shape, strides)
    }

    /// Operands of strides `strides` over `shape`.
    pub(crate) fn new(shape: &[usize], operands: [&[usize]; N]) -> Strided<N> {
        let mut merged: Vec<(usize, [usize; N])> = Vec::with_capacity(MAX_RANK);
        for (d, &size) in shape.iter().enumerate().filter(|&(_, &size)| size != 1) {
            let strides = operands.map(|s| s[d]);
            match merged.last_mut() {
                // The outer dimension steps over exactly one run of this one, in every operand.
                Some((outer, outer_strides)) if (0..N).all(|n| outer_strides[n] == strides[n] * size) => {
                    (*outer, *outer_strides) = (*outer * size, strides);
                }
                _ => merged.push((size, strides)),
            }
        }
        if merged.is_empty() {
            merged.push((1, [1; N]));
        }
        let mut out = Strided {
            count: shape.iter().product::<usize>() as u64,
            rank: merged.len() as u64,
            shape: [1; MAX_RANK],
            strides: [[0; MAX_RANK]; N],
        };
        for (d, &(size, strides)) in merged.iter().enumerate() {
            out.shape[d] = size as u64;
            for (out, stride) in out.strides.iter_mut().zip(strides) {
                out[d] = stride as u64;
            }
        }
        out
    }

    /// The same operands with `pack` neighbours along the last dimension as one entry; `None` if an operand's last dimension is neither a run
    /// of neighbours nor one element repeated, if the pack does not divide its size, or if it does not divide another stride.
    pub(crate) fn in_packs(mut self, pack: usize) -> Option<Strided<N>> {
        let (last, pack) = (self.rank as usize - 1, pack as u64);
        let fits = |strides: &[u64; MAX_RANK]| match strides[last] {
            0 => true,
            1 => strides[..last].iter().all(|s| s.is_multiple_of(pack)),
            _ => false,
        };
        if !self.shape[last].is_multiple_of(pack) || !self.strides.iter().all(fits) {
            return None;
        }
        self.count /= pack;
        self.shape[last] /= pack;
        self.strides.iter_mut().for_each(|s| s[last] *= pack);
        Some(self)
    }

    /// Whether every operand is one run of neighbours in memory.
    pub fn is_flat(&self) -> bool {
        self.rank == 1 && self.strides.iter().all(|s| s[0] == 1 || self.count <= 1)
    }
}
