//! Linear layers with and without bias, over one row and several leading dimensions.

use super::{Case, Check, inputs};
use crate::array::Placement;
use crate::reference::linear as reference;

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
        cases.push(case(&[2, 3, 9], 5, bias).placed(&[Transposed, Transposed, Sliced]));
        cases.push(case(&[2, 3, 9], 5, bias).placed(&[Sliced, Contiguous, Contiguous]));
        cases.push(case(&[2, 3, 9], 5, bias).placed(&[Repeated, Sliced, Contiguous]));
    }
    cases
}

pub(super) fn large() -> Vec<Case> {
    vec![case(&[100, 100], 7, true)]
}
