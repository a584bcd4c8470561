//! `out[b, i, j] = sum_p a[b, i, p] * b[b, p, j]`; `d_a = d_out b^T`, `d_b = a^T d_out`, summed over broadcast batches.

use crate::array::Array;

/// Batch sizes of both factors (1 if absent) and the common one.
fn batches(a: &Array, b: &Array) -> (usize, usize, usize) {
    let size = |x: &Array| x.shape[..x.shape.len() - 2].iter().product::<usize>();
    (size(a), size(b), size(a).max(size(b)))
}

/// [.., m, k] @ [.., k, n]; a factor without batches (or with one) serves all batches of the other.
pub fn forward(a: &Array, b: &Array) -> Array {
    let (m, k) = (a.shape[a.shape.len() - 2], a.width());
    let n = b.width();
    let (ba, bb, batch) = batches(a, b);
    let mut shape = if ba >= bb { a.shape.clone() } else { b.shape.clone() };
    let rank = shape.len();
    shape[rank - 2] = m;
    shape[rank - 1] = n;
    let mut out = Array::zeros(&shape);
    for z in 0..batch {
        let (za, zb) = (z % ba.max(1), z % bb.max(1));
        for i in 0..m {
            for j in 0..n {
                for p in 0..k {
                    out.data[(z * m + i) * n + j] += a.data[(za * m + i) * k + p] * b.data[(zb * k + p) * n + j];
                }
            }
        }
    }
    out
}

/// Gradients for a and b.
pub fn backward(a: &Array, b: &Array, d_out: &Array) -> Vec<Array> {
    let (m, k) = (a.shape[a.shape.len() - 2], a.width());
    let n = b.width();
    let (ba, bb, batch) = batches(a, b);
    let (mut d_a, mut d_b) = (Array::zeros(&a.shape), Array::zeros(&b.shape));
    for z in 0..batch {
        let (za, zb) = (z % ba.max(1), z % bb.max(1));
        for i in 0..m {
            for j in 0..n {
                let d = d_out.data[(z * m + i) * n + j];
                for p in 0..k {
                    d_a.data[(za * m + i) * k + p] += d * b.data[(zb * k + p) * n + j];
                    d_b.data[(zb * k + p) * n + j] += d * a.data[(za * m + i) * k + p];
                }
            }
        }
    }
    vec![d_a, d_b]
}
