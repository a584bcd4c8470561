//! [`Array`]: a dense row-major f64 array, what references compute with; and the layouts in which it becomes a tensor.

use patchgpt_tensor::{DType, Device, Result, Tensor};

/// A dense row-major f64 array.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub data: Vec<f64>,
}

impl Array {
    /// An array whose element with row-major number i is `f(i)`.
    pub fn from_fn(shape: &[usize], f: impl FnMut(usize) -> f64) -> Array {
        let data = (0..shape.iter().product()).map(f).collect();
        Array { shape: shape.to_vec(), data }
    }

    /// Zeros.
    pub fn zeros(shape: &[usize]) -> Array {
        Array::from_fn(shape, |_| 0.0)
    }

    /// Numbers in [-scale, scale), reproducible from `seed` (the SplitMix64 sequence).
    pub fn random(shape: &[usize], scale: f64, seed: u64) -> Array {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
        Array::from_fn(shape, |_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            ((z >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0) * scale
        })
    }

    /// Size of the last dimension.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows: the product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.width()..(i + 1) * self.width()]
    }

    /// Row `i`, to be written.
    pub fn row_mut(&mut self, i: usize) -> &mut [f64] {
        let w = self.width();
        &mut self.data[i * w..(i + 1) * w]
    }

    /// The element at an index tuple.
    pub fn at(&self, index: &[usize]) -> f64 {
        self.data[self.number(index)]
    }

    /// The element at an index tuple, to be written.
    pub fn at_mut(&mut self, index: &[usize]) -> &mut f64 {
        let n = self.number(index);
        &mut self.data[n]
    }

    /// The index tuple of the element with row-major number `i`.
    pub fn index(&self, mut i: usize) -> Vec<usize> {
        let mut index: Vec<usize> = self.shape.iter().rev().map(|&size| (i % size, i /= size).0).collect();
        index.reverse();
        index
    }

    fn number(&self, index: &[usize]) -> usize {
        assert_eq!(index.len(), self.shape.len());
        index.iter().zip(&self.shape).fold(0, |n, (&i, &size)| {
            assert!(i < size, "{index:?} in {:?}", self.shape);
            n * size + i
        })
    }

    /// The elements rounded to `dtype`, so that a reference sees exactly what a kernel sees.
    pub fn rounded(&self, dtype: DType) -> Array {
        Array::from_fn(&self.shape, |i| round_to(self.data[i], dtype))
    }

    /// The contents of a tensor.
    pub fn of(tensor: &Tensor) -> Result<Array> {
        Ok(Array { shape: tensor.shape().to_vec(), data: tensor.to_f64_vec()? })
    }
}

/// `x` rounded to nearest, ties to even, in a floating-point `dtype`: to a multiple of the spacing of numbers at its magnitude, and to
/// infinity from half a spacing above the largest number on. Integers and f64 are left alone.
pub fn round_to(x: f64, dtype: DType) -> f64 {
    // Bits behind the leading one, exponent of the smallest normal number, largest number.
    let (bits, smallest, largest) = match dtype {
        DType::F32 => (23, -126, f64::from(f32::MAX)),
        DType::F16 => (10, -14, 65504.0),
        DType::BF16 => (7, -126, f64::from(f32::MAX) / (2.0 - 2f64.powi(-23)) * (2.0 - 2f64.powi(-7))),
        DType::F64 | DType::I32 | DType::I64 => return x,
    };
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    // The exponent is that of the f64, from its bits: a logarithm could round across a power of two.
    let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    let spacing = 2f64.powi(exponent.max(smallest) - bits);
    let rounded = (x / spacing).round_ties_even() * spacing;
    if rounded.abs() > largest { f64::INFINITY.copysign(x) } else { rounded }
}

/// Row-major number in `shape`, which broadcasts to `out`, of the element that meets element `i` of `out`.
pub fn met_by(shape: &[usize], out: &[usize], mut i: usize) -> usize {
    let mut index = vec![0; out.len()];
    for d in (0..out.len()).rev() {
        index[d] = i % out[d];
        i /= out[d];
    }
    let lead = out.len() - shape.len();
    (0..shape.len()).fold(0, |n, d| n * shape[d] + if shape[d] == 1 { 0 } else { index[lead + d] })
}

/// How an input lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Row-major, without gaps.
    Contiguous,
    /// The last two dimensions swapped in memory.
    Transposed,
    /// A window of a larger buffer: an offset, and gaps after each row.
    Sliced,
    /// The first dimension repeated with stride 0 (all its entries are those of the first).
    Repeated,
}

impl Placement {
    /// Every placement.
    pub const ALL: [Placement; 4] =
        [Placement::Contiguous, Placement::Transposed, Placement::Sliced, Placement::Repeated];

    /// The values that a tensor so placed holds: those of `array`, or of its first entry repeated.
    pub fn values(self, array: &Array) -> Array {
        match self {
            Placement::Repeated if array.shape.len() >= 2 && array.shape[0] > 0 => {
                let entry = array.data.len() / array.shape[0];
                Array::from_fn(&array.shape, |i| array.data[i % entry])
            }
            _ => array.clone(),
        }
    }

    /// The array as a tensor with this placement.
    pub fn place(self, array: &Array, dtype: DType, device: &Device) -> Result<Tensor> {
        let rank = array.shape.len();
        let dense = |a: &Array| Tensor::from_slice(&a.data, &a.shape, device)?.cast(dtype);
        match self {
            Placement::Transposed if rank >= 2 => {
                let flipped = dense(array)?.t()?.copy()?;
                flipped.t()
            }
            Placement::Sliced if rank >= 1 => {
                let mut shape = array.shape.clone();
                shape[rank - 1] += 3;
                let wide = Tensor::full(&shape, f64::NAN, dtype, device)?;
                let window = wide.narrow(rank - 1, 2, array.width())?;
                window.copy_(&dense(array)?)?;
                Ok(window)
            }
            Placement::Repeated if rank >= 2 && array.shape[0] > 0 => {
                dense(array)?.narrow(0, 0, 1)?.broadcast_to(&array.shape)
            }
            _ => dense(array),
        }
    }
}
