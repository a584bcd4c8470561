//! What decides which algorithms cuBLASLt offers for a product: the key of plans and, as text, of the choices of a search.

use std::fmt;

use patchgpt_tensor::DType;

use super::Epilogue;
use crate::blas::{Factor, Gemm};

/// The most that the library is told of: the widest loads, and the copy engine, take 16 bytes. Fresh memory starts at multiples of 256, so that the
/// alignment of a tensor follows from its place in its buffer alone, and a problem is the same one on every run.
const MOST: u64 = 16;

/// Sizes, types, memory layouts and epilogue of a product, without addresses and scalars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    m: usize,
    n: usize,
    k: usize,
    batch: usize,
    a: Side,
    b: Side,
    c: Side,
    /// Alignment of the bias, if there is one.
    bias: Option<u32>,
    /// Leading dimension and alignment of the matrix that GELU is applied to, if it is.
    gelu: Option<(usize, u32)>,
}

/// One matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Side {
    dtype: DType,
    transposed: bool,
    leading: usize,
    /// 0 without a batch.
    stride: usize,
    alignment: u32,
}

impl Side {
    fn of(factor: &Factor, batch: usize) -> Side {
        let stride = if batch > 1 { factor.stride } else { 0 };
        let alignment = alignment(factor.address | (stride * factor.dtype.size()) as u64);
        Side { dtype: factor.dtype, transposed: factor.transposed, leading: factor.leading, stride, alignment }
    }
}

/// The largest power of two up to [`MOST`] that divides an address, or all of several that are joined by `|`.
fn alignment(address: u64) -> u32 {
    1 << (address | MOST).trailing_zeros()
}

impl Problem {
    pub(super) fn of(g: &Gemm, epilogue: &Epilogue) -> Problem {
        let side = |factor| Side::of(factor, g.batch);
        let gelu = match *epilogue {
            Epilogue::Gelu { sum, leading, .. } => Some((leading, alignment(sum))),
            _ => None,
        };
        let bias = epilogue.bias().map(alignment);
        Problem { m: g.m, n: g.n, k: g.k, batch: g.batch, a: side(&g.a), b: side(&g.b), c: side(&g.c), bias, gelu }
    }

    /// Bytes of whose multiples a, b and c start, in every matrix of the batch.
    pub(super) fn alignments(&self) -> [u32; 3] {
        [self.a.alignment, self.b.alignment, self.c.alignment]
    }

    /// Whether the matrix that GELU is applied to, if there is one, can be written: its leading dimension is a multiple of 8, as cuBLASLt
    /// demands, and it starts at a multiple of 16 bytes.
    pub(super) fn has_room_for_gelu(&self) -> bool {
        self.gelu.is_none_or(|(leading, alignment)| leading.is_multiple_of(8) && u64::from(alignment) == MOST)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { m, n, k, batch, a, b, c, bias, gelu } = self;
        write!(f, "{m} x {k} x {n}")?;
        if *batch > 1 {
            write!(f, ", {batch} of them")?;
        }
        for (name, side) in [("a", a), ("b", b), ("c", c)] {
            let Side { dtype, transposed, leading, stride, alignment } = side;
            let across = if *transposed { " transposed" } else { "" };
            write!(f, "; {name} {dtype}{across}, leading {leading}")?;
            if *stride > 0 {
                write!(f, ", stride {stride}")?;
            }
            write!(f, ", aligned to {alignment}")?;
        }
        if let Some(alignment) = bias {
            write!(f, "; bias aligned to {alignment}")?;
        }
        if let Some((leading, alignment)) = gelu {
            write!(f, "; gelu of leading {leading}, aligned to {alignment}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factor(address: u64, stride: usize) -> Factor {
        Factor { address, dtype: DType::BF16, transposed: false, leading: 24, stride }
    }

    #[test]
    fn alignments_follow_addresses_and_strides_of_a_batch() {
        assert_eq!([0, 256, 8, 12, 6, 7].map(alignment), [16, 16, 8, 4, 2, 1]);
        assert_eq!(Side::of(&factor(512, 3), 1).alignment, 16);
        assert_eq!(Side::of(&factor(512, 3), 2).alignment, 2);
        assert_eq!(Side::of(&factor(512, 12), 2).alignment, 8);
    }

    #[test]
    fn the_text_tells_problems_apart() {
        let g = Gemm {
            m: 24,
            n: 5,
            k: 7,
            a: factor(512, 0),
            b: Factor { transposed: true, leading: 5, ..factor(514, 0) },
            c: factor(1024, 0),
            alpha: 1.0,
            beta: 0.0,
            batch: 1,
        };
        let text = |g: &Gemm, epilogue| Problem::of(g, &epilogue).to_string();
        let plain = "24 x 7 x 5; a bf16, leading 24, aligned to 16; b bf16 transposed, leading 5, aligned to 2; c bf16, leading 24, aligned to 16";
        assert_eq!(text(&g, Epilogue::None), plain);
        assert_eq!(text(&Gemm { beta: 1.0, alpha: 2.0, ..g }, Epilogue::None), plain);
        assert_eq!(text(&g, Epilogue::Bias(64)), format!("{plain}; bias aligned to 16"));
        let gelu = Epilogue::Gelu { bias: None, sum: 8, leading: 24 };
        assert_eq!(text(&g, gelu), format!("{plain}; gelu of leading 24, aligned to 8"));
        let batch = Gemm { batch: 3, a: factor(512, 168), ..g };
        assert!(
            text(&batch, Epilogue::None)
                .starts_with("24 x 7 x 5, 3 of them; a bf16, leading 24, stride 168, aligned to 16")
        );
        assert_eq!(g.stored(), [[24, 7], [5, 7], [24, 5]]);
    }
}
