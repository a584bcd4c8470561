//! The head with its loss: `scale * sum of losses of x W^T`, against the product and the loss one after the other.

use patchgpt_tensor::Tensor;

use super::cross_entropy::{Weights, targets};
use super::{Case, inputs};
use crate::array::{Array, Placement};
use crate::reference::{cross_entropy, matmul};

const SCALE: f64 = 0.125;

fn transposed(x: &Array) -> Array {
    let (r, c) = (x.shape[0], x.shape[1]);
    Array::from_fn(&[c, r], |i| x.data[(i % r) * c + i / r])
}

pub(super) fn case(n: usize, c: usize, v: usize, k: usize) -> Case {
    let targets = targets(n, v, k, 5);
    let w = Weights::Reciprocal.values(k);
    let (t1, t2, w1, w2) = (targets.clone(), targets.clone(), w.clone(), w.clone());
    Case {
        op: "linear_cross_entropy",
        name: format!("x [{n}, {c}], weight [{v}, {c}], {k} targets"),
        inputs: inputs(&[&[n, c], &[v, c]]),
        run: Box::new(move |x| {
            let (device, dtype) = (x[0].device(), x[0].dtype().accumulator());
            let weights = Tensor::from_slice(&w, &[k], device)?.cast(dtype)?;
            let scale = Tensor::scalar(SCALE, dtype, device)?;
            x[0].linear_cross_entropy(&x[1], &Tensor::from_slice(&targets, &[n, k], device)?, &weights, &scale)
        }),
        forward: Box::new(move |x| {
            let losses = cross_entropy::forward(&matmul::forward(&x[0], &transposed(&x[1])), &t1, &w1);
            Array { shape: vec![], data: vec![SCALE * losses.data.iter().sum::<f64>()] }
        }),
        backward: Box::new(move |x, d| {
            let weight = transposed(&x[1]);
            let logits = matmul::forward(&x[0], &weight);
            let d_losses = Array::from_fn(&[n], |_| SCALE * d.data[0]);
            let d_logits = cross_entropy::backward(&logits, &t2, &w2, &d_losses).remove(0);
            let gradients = matmul::backward(&x[0], &weight, &d_logits);
            vec![gradients[0].clone(), transposed(&gradients[1])]
        }),
        reduction: n.max(c).max(v),
        flops: 2.0 * (n * c * v) as f64,
        traffic: (n * c + v * c + 2 * n * v) as f64,
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case(1, 1, 1, 1),
        case(5, 7, 11, 1),
        case(5, 7, 11, 4),
        case(70, 8, 33, 2),
        case(3, 16, 130, 3),
        case(0, 3, 4, 2),
    ];
    for p in [
        [Placement::Transposed, Placement::Contiguous],
        [Placement::Contiguous, Placement::Transposed],
        [Placement::Sliced, Placement::Sliced],
    ] {
        cases.push(case(6, 5, 9, 2).placed(&p));
    }
    cases
}
