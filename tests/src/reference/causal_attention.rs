//! Causal attention with the full matrix of probabilities: q [B, T, H, D], k and v [B, S, G, D], query t sees keys 0..=t + S - T.

use crate::array::Array;

/// Probabilities of query head h at position t over all keys.
fn probabilities(q: &Array, k: &Array, scale: f64, [z, t, h]: [usize; 3]) -> Vec<f64> {
    let (positions, heads, d) = (q.shape[1], q.shape[2], q.shape[3]);
    let (keys, groups) = (k.shape[1], k.shape[2]);
    let g = h / (heads / groups);
    let scores: Vec<f64> = (0..keys)
        .map(|s| match s <= t + keys - positions {
            true => scale * (0..d).map(|i| q.at(&[z, t, h, i]) * k.at(&[z, s, g, i])).sum::<f64>(),
            false => f64::NEG_INFINITY,
        })
        .collect();
    let max = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    scores.iter().map(|s| (s - max).exp() / sum).collect()
}

/// Output [B, T, H, D].
pub fn forward(q: &Array, k: &Array, v: &Array, scale: f64) -> Array {
    let [b, t, h, d] = q.shape[..] else { panic!("[B, T, H, D]") };
    let per_group = h / k.shape[2];
    let mut out = Array::zeros(&q.shape);
    for z in 0..b {
        for position in 0..t {
            for head in 0..h {
                let p = probabilities(q, k, scale, [z, position, head]);
                for i in 0..d {
                    *out.at_mut(&[z, position, head, i]) =
                        (0..p.len()).map(|s| p[s] * v.at(&[z, s, head / per_group, i])).sum();
                }
            }
        }
    }
    out
}

/// Gradients for q, k and v.
pub fn backward(q: &Array, k: &Array, v: &Array, scale: f64, d_out: &Array) -> Vec<Array> {
    let [b, t, h, d] = q.shape[..] else { panic!("[B, T, H, D]") };
    let (keys, per_group) = (k.shape[1], h / k.shape[2]);
    let (mut d_q, mut d_k, mut d_v) = (Array::zeros(&q.shape), Array::zeros(&k.shape), Array::zeros(&v.shape));
    for z in 0..b {
        for position in 0..t {
            for head in 0..h {
                let g = head / per_group;
                let p = probabilities(q, k, scale, [z, position, head]);
                let d_o = |i: usize| d_out.at(&[z, position, head, i]);
                let d_p: Vec<f64> = (0..keys).map(|s| (0..d).map(|i| d_o(i) * v.at(&[z, s, g, i])).sum()).collect();
                let mean: f64 = (0..keys).map(|s| p[s] * d_p[s]).sum();
                for s in 0..keys {
                    let d_score = p[s] * (d_p[s] - mean) * scale;
                    for i in 0..d {
                        *d_q.at_mut(&[z, position, head, i]) += d_score * k.at(&[z, s, g, i]);
                        *d_k.at_mut(&[z, s, g, i]) += d_score * q.at(&[z, position, head, i]);
                        *d_v.at_mut(&[z, s, g, i]) += p[s] * d_o(i);
                    }
                }
            }
        }
    }
    vec![d_q, d_k, d_v]
}
