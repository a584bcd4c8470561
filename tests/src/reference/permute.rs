//! `out[i_order[0], i_order[1], ..] = x[i_0, i_1, ..]`; the gradient goes the same way back.

use crate::array::Array;

/// Number in x of element `i` of the permuted array.
fn origin(x: &[usize], order: &[usize], mut i: usize) -> usize {
    let mut index = vec![0; x.len()];
    for &d in order.iter().rev() {
        index[d] = i % x[d];
        i /= x[d];
    }
    index.iter().zip(x).fold(0, |n, (&i, &size)| n * size + i)
}

/// x with its dimensions in the order `order`.
pub fn forward(x: &Array, order: &[usize]) -> Array {
    let shape: Vec<usize> = order.iter().map(|&d| x.shape[d]).collect();
    Array::from_fn(&shape, |i| x.data[origin(&x.shape, order, i)])
}

/// Gradient for x.
pub fn backward(x: &Array, order: &[usize], d_out: &Array) -> Vec<Array> {
    let mut d_x = Array::zeros(&x.shape);
    for (i, d) in d_out.data.iter().enumerate() {
        d_x.data[origin(&x.shape, order, i)] = *d;
    }
    vec![d_x]
}
