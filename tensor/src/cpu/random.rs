//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): a block of four words is a function of a 128-bit
//! counter and a 64-bit key, so that element i needs no other element.

use super::access::Access;
use super::parallel::{Pool, blocks};
use crate::backend::Distribution;
use crate::{DType, Error, Result, Tensor};
use half::bf16;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds over `counter` keyed by `key`.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let wide = |m: u32, x: u32| (m as u64) * (x as u64);
        let (a, b) = (wide(MULTIPLIERS[0], counter[0]), wide(MULTIPLIERS[1], counter[2]));
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// Two numbers in [0, 1) of 53 bits from block `index` of the sequence keyed by `seed`.
fn pair(seed: u64, index: u64) -> (f64, f64) {
    let w = philox([index as u32, (index >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let unit = |high: u32, low: u32| (((high as u64) << 32 | low as u64) >> 11) as f64 * 2f64.powi(-53);
    (unit(w[0], w[1]), unit(w[2], w[3]))
}

fn draw(distribution: Distribution, seed: u64, index: u64) -> f64 {
    let (u, v) = pair(seed, index);
    match distribution {
        Distribution::Uniform { low, high } => {
            let x = low + (high - low) * u;
            if x < high { x } else { high.next_down() }
        }
        Distribution::Normal { mean, std } => {
            mean + std * (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
        }
    }
}

/// `out` becomes `x`, rounded as [`Rounding::Stochastic`](crate::Rounding) says, both being what begins at element `start`.
pub(crate) fn round_stochastically(seed: u64, step: i32, start: usize, x: &[f32], out: &mut [bf16]) {
    let mut words = [0; 4];
    for (i, (out, &x)) in (start..).zip(out.iter_mut().zip(x)) {
        let (block, part) = (i / 8, i % 8);
        if part == 0 || i == start {
            let counter = [block as u32, (block as u64 >> 32) as u32, step as u32, 1];
            words = philox(counter, [seed as u32, (seed >> 32) as u32]);
        }
        let random = words[part / 2] >> (16 * (part % 2)) & 0xFFFF;
        // The sum of a number near the end of the range becomes infinity, but no NaN, and no bits beyond the sign's are reached.
        *out = if x.is_finite() { bf16::from_bits(((x.to_bits() + random) >> 16) as u16) } else { bf16::from_f32(x) };
    }
}

/// Fills the contiguous `out`.
pub(super) fn random(pool: &Pool, out: &Tensor, distribution: Distribution, seed: u64, offset: u64) -> Result<()> {
    let access = Access::new("random", &[], &[out])?;
    let (count, per_block) = blocks(out.len(), 64);
    let range = |b: usize| b * per_block..((b + 1) * per_block).min(out.len());
    match out.dtype() {
        DType::F64 => {
            let view = access.view_mut::<f64>(out)?;
            pool.run(count, |b| {
                // SAFETY: blocks are disjoint.
                let part = unsafe { view.slice(range(b)) };
                part.iter_mut()
                    .zip(range(b))
                    .for_each(|(x, i)| *x = draw(distribution, seed, offset.wrapping_add(i as u64)));
            });
        }
        DType::F32 => {
            let view = access.view_mut::<f32>(out)?;
            pool.run(count, |b| {
                // SAFETY: blocks are disjoint.
                let part = unsafe { view.slice(range(b)) };
                for (x, i) in part.iter_mut().zip(range(b)) {
                    *x = draw(distribution, seed, offset.wrapping_add(i as u64)) as f32;
                    if let Distribution::Uniform { high, .. } = distribution
                        && *x as f64 >= high
                    {
                        *x = x.next_down();
                    }
                }
            });
        }
        other => return Err(Error::dtype("random", "f32 or f64", other)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the generator (Random123, `kat_vectors`, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn stochastic_rounding_stays_between_neighbours_and_keeps_what_is_not_finite() {
        let round = |x: &[f32]| {
            let mut out = vec![bf16::ZERO; x.len()];
            round_stochastically(1, 3, 5, x, &mut out);
            out
        };
        for sign in [1.0, -1.0f32] {
            let x = sign * 1.0001f32;
            let near = [sign, sign * (1.0 + 2f32.powi(-7))].map(bf16::from_f32);
            let rounded = round(&[x; 1000]);
            assert!(rounded.iter().all(|y| near.contains(y)) && near.iter().all(|y| rounded.contains(y)));
            // Numbers of bf16 stay, and so does infinity, whose bits would carry over into NaN's.
            for exact in [0.0, sign, sign * f32::INFINITY, sign * f32::from_bits(0x0001_0000)] {
                assert!(round(&[exact; 100]).iter().all(|y| y.to_f32().to_bits() == exact.to_bits()), "{exact}");
            }
        }
        assert!(round(&[f32::NAN; 100]).iter().all(|y| y.is_nan()));
    }

    #[test]
    fn uniform_f32_is_the_f64_rounded_and_stays_below_its_end() {
        let device = crate::Device::cpu_with_threads(1).expect("a device");
        let random = |high: f64, dtype| {
            let uniform = Distribution::Uniform { low: 1.0, high };
            Tensor::random(&[1000], uniform, 5, 0, dtype, &device).expect("numbers").to_f64_vec().expect("numbers")
        };
        for (narrow, wide) in random(2.0, DType::F32).into_iter().zip(random(2.0, DType::F64)) {
            assert_eq!(narrow, f64::from(wide as f32));
        }
        // Between 1 and the next number: what rounds up to the end becomes the number below it.
        let end = 1.0 + f64::from(f32::EPSILON);
        assert!(random(end, DType::F64).iter().any(|&x| f64::from(x as f32) == end));
        assert!(random(end, DType::F32).iter().all(|&x| x == 1.0));
        assert!(random(1.0 + f64::EPSILON, DType::F64).iter().all(|&x| x == 1.0));
    }
}
