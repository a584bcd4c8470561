//! Linear layers with and without bias, over one row and several leading dimensions; the same with GELU behind them.

use super::{Case, Check, inputs};
use crate::array::Placement;
use crate::reference::{gelu, linear as reference};

pub(super) fn case(x: &[usize], out: usize, bias: bool) -> Case {
    let k = x[x.len() - 1];
    let rows: usize = x[..x.len() - 1].iter().product();
    let shapes: [&[usize]; 3] = [x, &[out, k], &[out]];
    Case {
        op: "linear",
        name: format!("{x:?} with weight [{out}, {k}]{}", if bias { " and bias" } else { "" }),
        inputs: inputs(&shapes[..if bias { 3 } else { 2 }]),
        run: Box::new(|x| x[0].linear(&x[1], x.get(2))),
        forward: Box::new(|x| reference::forward(&x[0], &x[1], x.get(2))),
        backward: Box::new(reference::backward),
        reduction: k.max(out).max(rows),
        flops: 2.0 * (rows * k * out) as f64,
        traffic: (rows * k + k * out + rows * out) as f64,
        check: Check::default(),
    }
}

/// The layer and then GELU, as one call makes both. The reference is the chain of theirs.
pub(super) fn with_gelu(x: &[usize], out: usize, bias: bool) -> Case {
    let plain = case(x, out, bias);
    Case {
        name: format!("{} and GELU", plain.name),
        run: Box::new(|x| x[0].linear_gelu(&x[1], x.get(2))),
        forward: Box::new(|x| gelu::forward(&reference::forward(&x[0], &x[1], x.get(2)))),
        backward: Box::new(|x, d| {
            let sum = reference::forward(&x[0], &x[1], x.get(2));
            reference::backward(x, &gelu::backward(&sum, d)[0])
        }),
        ..plain
    }
}

pub(super) fn cases() -> Vec<Case> {
    use Placement::{Contiguous, Repeated, Sliced, Transposed};
    let mut cases = Vec::new();
    for bias in [false, true] {
        let shapes: [(&[usize], usize); 8] = [
            (&[1, 1], 1),
            (&[7], 3),
            (&[5, 7], 3),
            (&[2, 3, 9], 5),
            (&[13, 1], 11),
            (&[67, 33], 65),
            (&[0, 4], 3),
            (&[3, 0], 2),
        ];
        cases.extend(shapes.iter().map(|(x, out)| case(x, *out, bias)));
        cases.extend(shapes.iter().map(|(x, out)| with_gelu(x, *out, bias)));
        // Outputs that a library's epilogue takes: whole rows of 16 bytes.
        cases.extend([(&[5, 7][..], 8), (&[67, 33], 64), (&[2, 3, 8], 24)].map(|(x, out)| with_gelu(x, out, bias)));
        cases.push(case(&[2, 3, 9], 5, bias).placed(&[Transposed, Transposed, Sliced]));
        cases.push(case(&[2, 3, 9], 5, bias).placed(&[Sliced, Contiguous, Contiguous]));
        cases.push(case(&[2, 3, 9], 5, bias).placed(&[Repeated, Sliced, Contiguous]));
        cases.push(with_gelu(&[2, 3, 9], 16, bias).placed(&[Transposed, Sliced, Sliced]));
    }
    cases
}

pub(super) fn large() -> Vec<Case> {
    vec![case(&[100, 100], 7, true)]
}
