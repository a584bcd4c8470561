//! Windows of every dtype: all of it, some columns, none.

use std::ops::Range;

use patchgpt_tensor::{DType, Tensor};

use super::Direct;
use crate::array::Array;
use crate::reference::fill as reference;

const ALL: [DType; 6] = [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I32, DType::I64];

fn case(rows: usize, columns: usize, window: Range<usize>, value: f64) -> Direct {
    let start = Array::from_fn(&[rows, columns], |i| i as f64);
    let (before, filled, n) = (start.clone(), window.clone(), rows * window.len());
    Direct {
        op: "fill",
        name: format!("columns {window:?} of [{rows}, {columns}] with {value}"),
        dtypes: &ALL,
        run: Box::new(move |dtype, device| {
            let x = Tensor::from_slice(&start.data, &start.shape, device)?.cast(dtype)?;
            x.narrow(1, window.start, window.len())?.fill_(value)?;
            // The same columns of a transposed view are rows of its memory.
            let flipped = x.t()?.copy()?;
            flipped.t()?.narrow(1, window.start, window.len())?.fill_(value)?;
            Ok(vec![x, flipped.t()?])
        }),
        expected: Box::new(move |dtype| {
            let out = reference::forward(&before.rounded(dtype), filled.clone(), value, dtype);
            vec![out.clone(), out]
        }),
        reduction: None,
        flops: 0.0,
        traffic: n as f64,
    }
}

pub(super) fn direct() -> Vec<Direct> {
    vec![
        case(1, 1, 0..1, 7.0),
        case(4, 6, 2..5, 7.0),
        case(5, 33, 0..33, -2.75),
        case(3, 130, 1..130, 1.0 / 3.0),
        case(3, 5, 2..2, 7.0),
        case(0, 4, 0..4, 7.0),
    ]
}
