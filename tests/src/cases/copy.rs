//! Copies from any dtype to any, between any two placements; rounding, truncation and saturation.

use patchgpt_tensor::DType;

use super::Direct;
use crate::array::{Array, Placement};
use crate::reference::copy as reference;

const ALL: [DType; 6] = [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I32, DType::I64];

/// `values`, first rounded to `from`, copied into a tensor of every type.
fn case(name: &str, values: Array, from: DType, [source, target]: [Placement; 2]) -> Direct {
    let (n, before) = (values.data.len() as f64, values.clone());
    Direct {
        op: "copy",
        name: format!("{name} {:?} from {from}, {source:?} to {target:?}", values.shape),
        dtypes: &ALL,
        run: Box::new(move |to, device| {
            let out = target.place(&Array::zeros(&values.shape), to, device)?;
            out.copy_(&source.place(&values, from, device)?)?;
            Ok(vec![out])
        }),
        expected: Box::new(move |to| vec![reference::forward(&reference::forward(&source.values(&before), from), to)]),
        reduction: None,
        flops: 0.0,
        traffic: 2.0 * n,
    }
}

/// Numbers at which conversions differ: ties, halves of the smallest and beyond the largest numbers of each type, NaN.
fn edges() -> Array {
    let mut data =
        vec![0.0, -0.0, 1.0, -2.9, 2.9, 0.5, -0.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, -1e300];
    for bits in [7, 10, 23] {
        let (tie, next) = (2f64.powi(-bits - 1), 2f64.powi(-bits));
        // Ties go to the even neighbour; a little more than a tie goes up, even if an f32 in between would hide it.
        data.extend([1.0 + tie, 1.0 + next + tie, 1.0 + tie + 2f64.powi(-45), -(3.0 + 3.0 * tie)]);
        data.push(1.0 + tie + 2f64.powi(-23) + 2f64.powi(-45));
    }
    for smallest in [-24, -133, -149] {
        data.extend([2f64.powi(smallest), 2f64.powi(smallest - 1), 1.5 * 2f64.powi(smallest - 1)]);
    }
    for largest in [65504.0, f64::from(f32::MAX), 2f64.powi(31), 2f64.powi(63)] {
        data.extend([largest, largest * (1.0 + 2f64.powi(-13)), -largest, largest / 2.0]);
    }
    Array { shape: vec![data.len()], data }
}

pub(super) fn direct() -> Vec<Direct> {
    use Placement::{Contiguous, Repeated, Sliced, Transposed};
    let mut cases = Vec::new();
    for from in ALL {
        cases.push(case("edges", edges(), from, [Contiguous, Contiguous]));
        for placements in [[Contiguous, Transposed], [Transposed, Sliced], [Sliced, Contiguous], [Repeated, Transposed]]
        {
            cases.push(case("numbers", Array::random(&[7, 13], 90.0, 1), from, placements));
        }
        for shape in [&[][..], &[1], &[0, 3], &[3, 1, 5], &[67, 130]] {
            cases.push(case("numbers", Array::random(shape, 90.0, 2), from, [Contiguous, Contiguous]));
        }
    }
    cases
}
