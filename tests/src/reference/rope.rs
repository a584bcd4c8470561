//! Rotation of the pairs (i, i + D/2) of every head by the angle `t * base^(-2i/D)`, t the position.

use crate::array::Array;

/// Rotates x [B, T, H, D]; `sign` 1 forward, -1 back (the gradient of the rotation).
pub fn rotate(x: &Array, base: f64, sign: f64) -> Array {
    let [b, t, h, d] = x.shape[..] else { panic!("[B, T, H, D], got {:?}", x.shape) };
    let mut out = Array::zeros(&x.shape);
    for z in 0..b {
        for position in 0..t {
            for head in 0..h {
                for i in 0..d / 2 {
                    let angle = sign * position as f64 * base.powf(-2.0 * i as f64 / d as f64);
                    let (p, q) = (x.at(&[z, position, head, i]), x.at(&[z, position, head, i + d / 2]));
                    *out.at_mut(&[z, position, head, i]) = p * angle.cos() - q * angle.sin();
                    *out.at_mut(&[z, position, head, i + d / 2]) = q * angle.cos() + p * angle.sin();
                }
            }
        }
    }
    out
}
