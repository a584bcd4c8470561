//! Random numbers of Philox4x32-10 (Salmon et al., 2011), written over 128-bit integers: element i is made from block `offset + i`, whose
//! words (w0, w1, w2, w3) give `u = ((w0 << 32 | w1) >> 11) * 2^-53` and v from (w2, w3).

use patchgpt_tensor::{DType, Distribution};

use crate::array::{Array, round_to};

const LOW: u128 = 0xffff_ffff;

/// The four words of block `counter` keyed by `seed`.
fn block(counter: u64, seed: u64) -> [u128; 4] {
    let mut x = [u128::from(counter) & LOW, u128::from(counter) >> 32, 0, 0];
    for round in 0..10u128 {
        let k0 = ((u128::from(seed) & LOW) + round * 0x9E37_79B9) & LOW;
        let k1 = ((u128::from(seed) >> 32) + round * 0xBB67_AE85) & LOW;
        let (a, b) = (0xD251_1F53 * x[0], 0xCD9E_8D57 * x[2]);
        x = [(b >> 32) ^ x[1] ^ k0, b & LOW, (a >> 32) ^ x[3] ^ k1, a & LOW];
    }
    x
}

/// `n` numbers of type `dtype`. A uniform that rounds up to the upper end is the number below it.
pub fn forward(n: usize, distribution: Distribution, seed: u64, offset: u64, dtype: DType) -> Array {
    Array::from_fn(&[n], |i| {
        let w = block(offset.wrapping_add(i as u64), seed);
        let unit = |high: u128, low: u128| ((high * (LOW + 1) + low) / 2048) as f64 / 2f64.powi(53);
        let (u, v) = (unit(w[0], w[1]), unit(w[2], w[3]));
        match distribution {
            Distribution::Uniform { low, high } => {
                let x = round_to(low + (high - low) * u, dtype);
                match dtype {
                    DType::F32 if x >= high => f64::from((x as f32).next_down()),
                    _ if x >= high => x.next_down(),
                    _ => x,
                }
            }
            Distribution::Normal { mean, std } => {
                let radius = (-2.0 * (1.0 - u).ln()).sqrt();
                round_to(mean + std * radius * (2.0 * std::f64::consts::PI * v).cos(), dtype)
            }
        }
    })
}
