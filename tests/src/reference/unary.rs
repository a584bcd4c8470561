//! Element-wise functions of one and two arguments, with broadcasting.

use patchgpt_tensor::{Binary, Unary};

use crate::array::Array;

/// Value and derivative of a function of one argument.
pub fn value_and_derivative(op: Unary, x: f64) -> (f64, f64) {
    match op {
        Unary::Neg => (-x, -1.0),
        Unary::Exp => (x.exp(), x.exp()),
        Unary::Log => (x.ln(), 1.0 / x),
        Unary::Sqrt => (x.sqrt(), 0.5 / x.sqrt()),
        Unary::Tanh => (x.tanh(), 1.0 / x.cosh().powi(2)),
        Unary::Sigmoid => (1.0 / (1.0 + (-x).exp()), (-x).exp() / (1.0 + (-x).exp()).powi(2)),
        Unary::Square => (x * x, 2.0 * x),
        Unary::Recip => (1.0 / x, -1.0 / (x * x)),
        Unary::Affine { mul, add } => (x * mul + add, mul),
    }
}

/// Value and both derivatives of a function of two arguments.
pub fn value_and_derivatives(op: Binary, a: f64, b: f64) -> (f64, f64, f64) {
    match op {
        Binary::Add => (a + b, 1.0, 1.0),
        Binary::Sub => (a - b, 1.0, -1.0),
        Binary::Mul => (a * b, b, a),
        Binary::Div => (a / b, 1.0 / b, -a / (b * b)),
        Binary::Max => {
            if a > b {
                (a, 1.0, 0.0)
            } else {
                (b, 0.0, 1.0)
            }
        }
        Binary::Min => {
            if a < b {
                (a, 1.0, 0.0)
            } else {
                (b, 0.0, 1.0)
            }
        }
    }
}

/// `op` of every element.
pub fn unary(op: Unary, x: &Array) -> Array {
    Array::from_fn(&x.shape, |i| value_and_derivative(op, x.data[i]).0)
}

/// Gradient of [`unary`].
pub fn unary_backward(op: Unary, x: &Array, d_out: &Array) -> Vec<Array> {
    vec![Array::from_fn(&x.shape, |i| d_out.data[i] * value_and_derivative(op, x.data[i]).1)]
}

/// Row-major number in `shape`, which broadcasts to `out`, of the element that meets element `i` of `out`.
pub fn source(shape: &[usize], out: &[usize], mut i: usize) -> usize {
    let mut index = vec![0; out.len()];
    for d in (0..out.len()).rev() {
        index[d] = i % out[d];
        i /= out[d];
    }
    let lead = out.len() - shape.len();
    (0..shape.len()).fold(0, |n, d| n * shape[d] + if shape[d] == 1 { 0 } else { index[lead + d] })
}

fn common(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let size = |s: &[usize], d: usize| if d + s.len() < rank { 1 } else { s[d + s.len() - rank] };
    (0..rank).map(|d| if size(a, d) == 1 { size(b, d) } else { size(a, d) }).collect()
}

/// `op` of the elements of two arrays that broadcast.
pub fn binary(op: Binary, a: &Array, b: &Array) -> Array {
    let shape = common(&a.shape, &b.shape);
    Array::from_fn(&shape, |i| {
        value_and_derivatives(op, a.data[source(&a.shape, &shape, i)], b.data[source(&b.shape, &shape, i)]).0
    })
}

/// Gradients of [`binary`], summed over what was broadcast.
pub fn binary_backward(op: Binary, a: &Array, b: &Array, d_out: &Array) -> Vec<Array> {
    let (mut d_a, mut d_b) = (Array::zeros(&a.shape), Array::zeros(&b.shape));
    for (i, d) in d_out.data.iter().enumerate() {
        let (ia, ib) = (source(&a.shape, &d_out.shape, i), source(&b.shape, &d_out.shape, i));
        let (_, da, db) = value_and_derivatives(op, a.data[ia], b.data[ib]);
        d_a.data[ia] += d * da;
        d_b.data[ib] += d * db;
    }
    vec![d_a, d_b]
}
