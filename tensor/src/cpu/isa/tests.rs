use super::*;

#[test]
fn a_request_is_honoured_or_refused_by_name() {
    assert_eq!(choose(None), Ok(Path::best()));
    assert_eq!(choose(Some("")), Ok(Path::best()));
    assert_eq!(choose(Some(" portable ")), Ok(Path::Portable));
    for path in Path::ALL {
        match choose(Some(path.name())) {
            Ok(chosen) => assert!(chosen == path && path.is_available()),
            Err(message) => {
                assert!(!path.is_available());
                assert!(message.contains(path.name()) && message.contains(VARIABLE), "{message}");
            }
        }
    }
    let message = choose(Some("sse9")).expect_err("not a path");
    assert!(message.contains("sse9") && message.contains("avx2"), "{message}");
}

#[test]
fn one_path_multiplies_bf16() {
    assert!(Path::ALL.into_iter().filter(|path| path.multiplies_bf16()).eq([Path::Avx512Bf16]));
}

#[test]
fn values_are_rounded_to_the_nearest_bf16_on_every_path() {
    struct Rounded<'a>(&'a [f32]);
    impl Kernel for Rounded<'_> {
        type Output = Vec<u16>;
        #[inline(always)]
        fn run<I: Isa>(self, _: I) -> Vec<u16> {
            let mut out = vec![0; self.0.len()];
            I::round_bf16(self.0, &mut out);
            out
        }
    }
    // Ties to even in both directions, neighbours of ties, the largest, an overflow, infinities, zeros; then more than a vector of others.
    let bits = [
        0x3F80_8000,
        0x3F81_8000,
        0x3F80_7FFF,
        0x3F80_8001,
        0x7F7F_0000,
        0x7F7F_FFFF,
        0x7F80_0000,
        0xFF80_0000,
        0,
        1 << 31,
    ];
    let mut x: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
    x.extend((0..71).map(|i| (i as f32 - 35.3) * 1.37f32.powi(i)));
    for path in available() {
        let found = dispatch_bf16_on(path, Rounded(&x));
        assert!(found.iter().zip(&x).all(|(found, x)| *found == half::bf16::from_f32(*x).to_bits()), "{path:?}");
        let nan = dispatch_bf16_on(path, Rounded(&[f32::NAN; 33]));
        assert!(nan.iter().all(|bits| half::bf16::from_bits(*bits).is_nan()), "{path:?}");
    }
}

#[test]
fn a_kernel_runs_with_the_token_of_its_path() {
    struct Name;
    impl Kernel for Name {
        type Output = (usize, f32, f64);
        #[inline(always)]
        fn run<I: Isa>(self, _: I) -> Self::Output {
            (I::LANES, I::fma_f32(3.0, 5.0, 7.0), I::fma_f64(3.0, 5.0, 7.0))
        }
    }
    for path in available() {
        let lanes = match path {
            Path::Portable => 4,
            Path::Avx2 => 8,
            Path::Avx512 | Path::Avx512Bf16 => 16,
        };
        assert_eq!(dispatch_on(path, Name), (lanes, 22.0, 22.0));
    }
    assert_eq!(dispatch(Name), dispatch_on(path(), Name));
}

#[test]
fn pairs_are_joined_from_bits_and_from_values_on_every_path() {
    struct Joined<'a>(&'a [u16], &'a [u16]);
    impl Kernel for Joined<'_> {
        type Output = (Vec<u32>, Vec<u32>, Vec<f32>);
        #[inline(always)]
        fn run<I: Isa>(self, _: I) -> Self::Output {
            let Joined(first, second) = self;
            let (mut bits, mut values) = (vec![0; first.len()], vec![0; 32]);
            I::join_bf16(first, second, &mut bits);
            let mut wide = [vec![0.0; first.len()], vec![0.0; first.len()]];
            I::widen_bf16(first, &mut wide[0]);
            I::widen_bf16(second, &mut wide[1]);
            // Whole vectors only.
            I::round_pairs(&wide[0][..32], &wide[1][..32], &mut values);
            (bits, values, wide.concat())
        }
    }
    // Normal numbers of both signs; more than two vectors and a part of one.
    let bits = |seed: u16| -> Vec<u16> { (0..43).map(|i| (0x3E00 + 9 * i + seed) ^ ((i % 2) << 15)).collect() };
    let (first, second) = (bits(1), bits(2));
    for path in available() {
        let (joined, rounded, wide) = dispatch_bf16_on(path, Joined(&first, &second));
        for i in 0..first.len() {
            let expected = u32::from(first[i]) | u32::from(second[i]) << 16;
            assert_eq!(joined[i], expected, "{path:?}, pair {i}");
            assert!(i >= 32 || rounded[i] == expected, "{path:?}, pair {i} of values");
            let values = [first[i], second[i]].map(|bits| half::bf16::from_bits(bits).to_f32());
            assert_eq!([wide[i], wide[i + first.len()]], values, "{path:?}, values {i}");
        }
    }
}
