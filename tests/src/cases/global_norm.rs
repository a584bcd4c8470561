//! Norms of nothing, of one number and of more than one block, clipped and not.

use super::{Direct, FLOATS};
use crate::array::{Array, Placement};
use crate::reference::global_norm as reference;

fn case(n: usize, scale: f64, max_norm: f64) -> Direct {
    let x = Array::random(&[n], scale, n as u64);
    let before = x.clone();
    Direct {
        op: "global_norm",
        name: format!("{n} numbers up to {scale}, clipped at {max_norm}"),
        dtypes: &FLOATS,
        run: Box::new(move |dtype, device| {
            let (norm, clip) = Placement::Contiguous.place(&x, dtype, device)?.global_norm(max_norm)?;
            Ok(vec![norm, clip])
        }),
        expected: Box::new(move |dtype| {
            reference::forward(&before.rounded(dtype), max_norm).map(|v| Array { shape: vec![], data: vec![v] }).into()
        }),
        // Squares do not cancel: a sum in pieces errs by a few roundings.
        reduction: Some(1),
        flops: 2.0 * n as f64,
        traffic: n as f64,
    }
}

pub(super) fn direct() -> Vec<Direct> {
    vec![
        case(0, 1.0, 1.0),
        case(1, 3.0, 1e9),
        case(1, 3.0, 1e-3),
        case(1001, 3.0, 1.0),
        case(67, 1e-9, 1.0),
        case(300_000, 3.0, 1.0),
    ]
}
