//! Arrays one after the other along a dimension; each one's gradient is its part of the output's.

use crate::array::Array;

/// Product of the sizes behind dimension `dim`.
fn inner(shape: &[usize], dim: usize) -> usize {
    shape[dim + 1..].iter().product()
}

/// All of `xs`, which agree in every dimension but `dim`.
pub fn forward(xs: &[Array], dim: usize) -> Array {
    let mut shape = xs[0].shape.clone();
    shape[dim] = xs.iter().map(|x| x.shape[dim]).sum();
    let (total, inner) = (shape[dim], inner(&shape, dim));
    Array::from_fn(&shape, |i| {
        let (before, mut along, behind) = (i / (total * inner), i / inner % total, i % inner);
        for x in xs {
            if along < x.shape[dim] {
                return x.data[(before * x.shape[dim] + along) * inner + behind];
            }
            along -= x.shape[dim];
        }
        unreachable!("an index within the sum of the sizes")
    })
}

/// Gradients for all of `xs`.
pub fn backward(xs: &[Array], dim: usize, d_out: &Array) -> Vec<Array> {
    let (total, inner) = (d_out.shape[dim], inner(&d_out.shape, dim));
    let mut start = 0;
    let mut part = |x: &Array| {
        let size = x.shape[dim];
        let gradient = Array::from_fn(&x.shape, |i| {
            let (before, along, behind) = (i / (size * inner), i / inner % size, i % inner);
            d_out.data[(before * total + start + along) * inner + behind]
        });
        start += size;
        gradient
    };
    xs.iter().map(&mut part).collect()
}
