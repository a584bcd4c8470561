//! Seeded permutations that stay the same for ever: the order of the data is part of a run's identity, so it hangs
//! on no other crate's version. Generator: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
//! generators", OOPSLA 2014); shuffle: Fisher-Yates from the end; bounded numbers: Lemire's multiplication with
//! rejection (arXiv 1805.10941), which has no bias.

/// The SplitMix64 generator: a counter that advances by the golden ratio, its value mixed.
#[derive(Clone, Debug)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// A generator whose sequence depends on every number of `key`, in order.
    pub fn from_key(key: &[u64]) -> Self {
        let mut generator = SplitMix64 { state: 0 };
        for &part in key {
            generator.state ^= part;
            generator.state = generator.next_u64();
        }
        generator
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A uniform number in `0..bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        let reject_under = bound.wrapping_neg().checked_rem(bound).unwrap_or(0);
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            if product as u64 >= reject_under {
                return (product >> 64) as u64;
            }
        }
    }
}

/// A permutation of `0..length`, every one equally likely over the keys.
pub fn permutation(length: u32, key: &[u64]) -> Vec<u32> {
    let mut generator = SplitMix64::from_key(key);
    let mut order: Vec<u32> = (0..length).collect();
    for last in (1..order.len()).rev() {
        let other = generator.below(last as u64 + 1) as usize;
        order.swap(last, other);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference values of the generator's published C source for the seeds 0 and 1234567.
    #[test]
    fn splitmix_follows_the_published_sequence() {
        let mut zero = SplitMix64 { state: 0 };
        assert_eq!(zero.next_u64(), 0xE220_A839_7B1D_CDAF);
        let mut seeded = SplitMix64 { state: 1_234_567 };
        let first: Vec<u64> = (0..3).map(|_| seeded.next_u64()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn a_permutation_holds_every_number_once_and_depends_on_its_whole_key() {
        for length in [0, 1, 2, 3, 17, 1000] {
            let mut order = permutation(length, &[7, 3]);
            order.sort_unstable();
            assert_eq!(order, (0..length).collect::<Vec<_>>());
        }
        let order = permutation(1000, &[7, 3]);
        assert_eq!(order, permutation(1000, &[7, 3]));
        for other in [&[7, 4][..], &[3, 7], &[7], &[7, 3, 0]] {
            assert_ne!(order, permutation(1000, other));
        }
    }

    /// All six orders of three things, over 6000 keys: chi-square with 5 degrees of freedom stays under its
    /// 99.9% quantile.
    #[test]
    fn orders_are_equally_likely() {
        let mut counts = std::collections::HashMap::new();
        for key in 0..6000 {
            *counts.entry(permutation(3, &[key])).or_insert(0.0) += 1.0;
        }
        assert_eq!(counts.len(), 6);
        let chi_square: f64 = counts.values().map(|count: &f64| (count - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi_square < 20.5, "chi-square {chi_square}");
    }

    #[test]
    fn bounded_numbers_stay_below_their_bound() {
        let mut generator = SplitMix64::from_key(&[1]);
        for bound in [1, 2, 3, 10, u64::MAX] {
            for _ in 0..100 {
                assert!(generator.below(bound) < bound);
            }
        }
        assert_eq!(generator.below(0), 0);
    }
}
