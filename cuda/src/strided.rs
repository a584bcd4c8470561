//! Shapes and strides of operands as kernels take them, with as few dimensions as they allow.

use bytemuck::{Pod, Zeroable};
use patchgpt_tensor::{Error, MAX_RANK, Result, Tensor};

/// The common shape of `N` operands and the strides of each, by value; `Strided<N>` in `prelude.cuh`.
///
/// Dimensions of size 1 are gone and neighbours that are one run of addresses in all operands are merged, so that contiguous operands have rank 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strided<const N: usize> {
    /// Number of elements.
    pub count: u64,
    /// Number of dimensions, at least 1.
    pub rank: u32,
    /// Sizes of the dimensions, those from `rank` on being 1.
    pub shape: [u32; MAX_RANK],
    unused: u32,
    /// Strides of each operand, in elements.
    pub strides: [[u64; MAX_RANK]; N],
}

// SAFETY: all fields are integers and all bit patterns are valid.
unsafe impl<const N: usize> Zeroable for Strided<N> {}
// SAFETY: repr(C) of integers without padding (8, 4, 8 * 4, 4, then multiples of 8), Copy and 'static.
unsafe impl<const N: usize> Pod for Strided<N> {}

impl<const N: usize> Strided<N> {
    /// The operands, which have one shape.
    ///
    /// # Errors
    /// A dimension of 2^32 or more elements that cannot be merged away.
    pub fn of(op: &'static str, operands: [&Tensor; N]) -> Result<Strided<N>> {
        let shape = operands[0].shape();
        let mut merged: Vec<(usize, [usize; N])> = Vec::with_capacity(MAX_RANK);
        for (d, &size) in shape.iter().enumerate().filter(|&(_, &size)| size != 1) {
            let strides = operands.map(|t| t.strides()[d]);
            match merged.last_mut() {
                // The outer dimension steps over exactly one run of this one, in every operand.
                Some((outer, outer_strides))
                    if (0..N).all(|n| outer_strides[n] == strides[n] * size) && *outer * size <= u32::MAX as usize =>
                {
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
            rank: merged.len() as u32,
            shape: [1; MAX_RANK],
            unused: 0,
            strides: [[0; MAX_RANK]; N],
        };
        for (d, &(size, strides)) in merged.iter().enumerate() {
            out.shape[d] = u32::try_from(size).map_err(|_| {
                Error::shape(op, format!("dimensions below 2^32 elements expected on this device, got {shape:?}"))
            })?;
            for n in 0..N {
                out.strides[n][d] = strides[n] as u64;
            }
        }
        Ok(out)
    }

    /// Whether every operand is one run of neighbours in memory.
    pub fn is_flat(&self) -> bool {
        self.rank == 1 && self.strides.iter().all(|s| s[0] == 1 || self.count <= 1)
    }
}
