//! Attention of a joined projection [B, T, (H + 2G) D]: take the heads apart, rotate q and k, attend, join the heads.

use super::{causal_attention, rope};
use crate::array::Array;

/// What a joined projection holds and how it is used.
#[derive(Clone, Copy)]
pub struct Heads {
    /// H, query heads.
    pub queries: usize,
    /// G, key-value heads.
    pub groups: usize,
    /// D, head size.
    pub size: usize,
    /// The base of the rotation, if there is one.
    pub rope: Option<f64>,
    /// The factor on the scores.
    pub scale: f64,
}

impl Heads {
    /// The heads `start..start + count` of the joined array, as [B, T, count, D].
    fn part(self, x: &Array, start: usize, count: usize) -> Array {
        let (b, t, d) = (x.shape[0], x.shape[1], self.size);
        Array::from_fn(&[b, t, count, d], |i| x.row(i / (count * d))[start * d + i % (count * d)])
    }

    fn rotated(self, x: Array, sign: f64) -> Array {
        match self.rope {
            Some(base) => rope::rotate(&x, base, sign),
            None => x,
        }
    }

    fn split(self, x: &Array) -> [Array; 3] {
        let (h, g) = (self.queries, self.groups);
        let (q, k) = (self.part(x, 0, h), self.part(x, h, g));
        [self.rotated(q, 1.0), self.rotated(k, 1.0), self.part(x, h + g, g)]
    }

    /// Output [B, T, H D].
    pub fn forward(self, x: &Array) -> Array {
        let [q, k, v] = self.split(x);
        let shape = vec![x.shape[0], x.shape[1], self.queries * self.size];
        Array { shape, data: causal_attention::forward(&q, &k, &v, self.scale).data }
    }

    /// Gradient for the joined array.
    pub fn backward(self, x: &Array, d_out: &Array) -> Vec<Array> {
        let ([q, k, v], d) = (self.split(x), self.size);
        let d_out = Array { shape: q.shape.clone(), data: d_out.data.clone() };
        let [d_q, d_k, d_v] = <[Array; 3]>::try_from(causal_attention::backward(&q, &k, &v, self.scale, &d_out))
            .expect("the gradients of q, k and v");
        let (d_q, d_k) = (self.rotated(d_q, -1.0), self.rotated(d_k, -1.0));
        let (h, g, width) = (self.queries, self.groups, x.shape[2]);
        vec![Array::from_fn(&x.shape, |i| {
            let (row, column) = (i / width, i % width);
            match column / d {
                head if head < h => d_q.data[row * h * d + column],
                head if head < h + g => d_k.data[row * g * d + column - h * d],
                _ => d_v.data[row * g * d + column - (h + g) * d],
            }
        })]
    }
}
