//! Every element of a window of columns becomes one number; nothing else changes.

use std::ops::Range;

use patchgpt_tensor::DType;

use super::copy::cast;
use crate::array::Array;

/// `x` [R, C] with `columns` filled with `value`, rounded to `dtype`.
pub fn forward(x: &Array, columns: Range<usize>, value: f64, dtype: DType) -> Array {
    let c = x.width();
    Array::from_fn(&x.shape, |i| if columns.contains(&(i % c)) { cast(value, dtype) } else { x.data[i] })
}
