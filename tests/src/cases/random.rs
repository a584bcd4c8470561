//! Both distributions, with seeds and offsets beyond 32 bits.

use patchgpt_tensor::{Distribution, Tensor};

use super::{Direct, FLOATS};
use crate::reference::random as reference;

fn case(n: usize, distribution: Distribution, seed: u64, offset: u64) -> Direct {
    Direct {
        op: "random",
        name: format!("{n} of {distribution:?}, seed {seed}, offset {offset}"),
        dtypes: &FLOATS,
        run: Box::new(move |dtype, device| Ok(vec![Tensor::random(&[n], distribution, seed, offset, dtype, device)?])),
        expected: Box::new(move |dtype| vec![reference::forward(n, distribution, seed, offset, dtype)]),
        // Logarithm, root and cosine may be those of any mathematical library.
        reduction: Some(1),
        flops: 100.0 * n as f64,
        traffic: n as f64,
    }
}

pub(super) fn direct() -> Vec<Direct> {
    let normal = Distribution::Normal { mean: 2.0, std: 0.5 };
    let uniform = Distribution::Uniform { low: -1.0, high: 3.0 };
    // So narrow that numbers of f32 round up to the upper end.
    let narrow = Distribution::Uniform { low: 1.0, high: 1.0 + 2f64.powi(-22) };
    let mut cases = Vec::new();
    for distribution in [normal, uniform, narrow] {
        for (n, seed, offset) in
            [(1, 0, 0), (0, 1, 2), (1000, 3, 0), (67, 1 << 40 | 5, (1 << 32) - 7), (5, u64::MAX, u64::MAX - 2)]
        {
            cases.push(case(n, distribution, seed, offset));
        }
    }
    cases
}
