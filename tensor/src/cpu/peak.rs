//! The CPU's ceilings, measured: multiply-adds from registers on the instruction path in use, and a copy from and to memory.
//!
//! Arithmetic: every thread runs chains `x = x * a + b` in [`CHAINS`] independent vector registers, enough to hide the latency
//! of two multiply-add units (4 cycles each on the processors at hand); nothing is loaded or stored. bf16 counts
//! `vdpbf16ps` where the path has it, else the f32 rate, which its products then run at.
//! Memory: a copy whose source and target together have at least eight times the bytes of the last-level cache.
//! Both report the fastest of several rounds: a ceiling is what the machine has been seen to do.

use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::isa::{self, Path};
use super::parallel::Pool;
use crate::{DType, Limits};

/// Independent chains of a thread.
const CHAINS: usize = 12;
/// Links of each chain in one task, some 0.3 ms of work.
const LINKS: usize = 100_000;
/// Tasks of each thread in a round, so that a thread that starts late costs little.
const TASKS: usize = 16;
/// Rounds of arithmetic, half a second in all, so that a moment of other work on the machine is outlasted.
const ROUNDS: usize = 96;
/// Rounds of copying, for the same reason.
const COPIES: usize = 15;
/// The last-level cache where the system does not tell its size.
const CACHE: usize = 32 << 20;
/// Most bytes that the copy takes, source and target together.
const MOST: usize = 4 << 30;

/// Measures both ceilings with the threads of `pool`.
pub(super) fn limits(pool: &Pool, dtype: DType) -> Limits {
    let copied_bytes = (8 * last_level_cache()).clamp(256 << 20, MOST);
    Limits {
        flops_per_second: flops_per_second(pool, dtype),
        bytes_per_second: bytes_per_second(pool, copied_bytes),
        copied_bytes,
    }
}

/// Seconds of the fastest of `rounds` calls.
fn fastest(rounds: usize, mut round: impl FnMut()) -> f64 {
    let timed = (0..rounds).map(|_| {
        let begun = Instant::now();
        round();
        begun.elapsed().as_secs_f64()
    });
    timed.fold(f64::INFINITY, f64::min)
}

fn flops_per_second(pool: &Pool, dtype: DType) -> f64 {
    let tasks = TASKS * pool.threads();
    let (chains, per_link) = kernel(dtype);
    let seconds = fastest(ROUNDS, || pool.run(tasks, |_| chains(LINKS)));
    (tasks * LINKS * CHAINS * per_link) as f64 / seconds
}

/// The chains of the path in use, and the operations of one link of one chain.
fn kernel(dtype: DType) -> (fn(usize), usize) {
    let path = isa::path();
    #[cfg(target_arch = "x86_64")]
    {
        use x86::{avx2_f32, avx2_f64, avx512_bf16, avx512_f32, avx512_f64};
        // SAFETY (of all calls below): `path` names only paths that this processor was found to have.
        match (path, dtype) {
            // SAFETY: see above.
            (Path::Avx2, DType::F64) => return (|n| unsafe { avx2_f64(n) }, 2 * 4),
            // SAFETY: see above.
            (Path::Avx2, _) => return (|n| unsafe { avx2_f32(n) }, 2 * 8),
            // SAFETY: see above.
            (Path::Avx512 | Path::Avx512Bf16, DType::F64) => return (|n| unsafe { avx512_f64(n) }, 2 * 8),
            // SAFETY: see above.
            (Path::Avx512Bf16, DType::BF16) => return (|n| unsafe { avx512_bf16(n) }, 4 * 16),
            // SAFETY: see above.
            (Path::Avx512 | Path::Avx512Bf16, _) => return (|n| unsafe { avx512_f32(n) }, 2 * 16),
            (Path::Portable, _) => {}
        }
    }
    debug_assert_eq!(path, Path::Portable);
    match dtype {
        DType::F64 => (portable_f64, 2 * 2),
        _ => (portable_f32, 2 * 4),
    }
}

/// Chains in arrays of one baseline register each; where the baseline has no multiply-add, a product and a sum.
macro_rules! portable {
    ($name:ident, $float:ty, $lanes:literal) => {
        fn $name(links: usize) {
            let (a, b) = black_box(([0.999 as $float; $lanes], [0.001 as $float; $lanes]));
            let mut chains = black_box([[1.0 as $float; $lanes]; CHAINS]);
            for _ in 0..links {
                for chain in &mut chains {
                    for ((x, a), b) in chain.iter_mut().zip(&a).zip(&b) {
                        *x = if cfg!(target_arch = "aarch64") { x.mul_add(*a, *b) } else { *x * *a + *b };
                    }
                }
            }
            black_box(chains);
        }
    };
}

portable!(portable_f32, f32, 4);
portable!(portable_f64, f64, 2);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::CHAINS;

    macro_rules! chains {
        ($name:ident, $features:literal, $set:ident, $float:ty, $fma:ident) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(links: usize) {
                let (a, b) = black_box(($set(0.999), $set(0.001)));
                let mut chains = [$set(black_box(1.0 as $float)); CHAINS];
                for _ in 0..links {
                    for chain in &mut chains {
                        *chain = $fma(*chain, a, b);
                    }
                }
                black_box(chains);
            }
        };
    }

    chains!(avx2_f32, "avx2,fma", _mm256_set1_ps, f32, _mm256_fmadd_ps);
    chains!(avx2_f64, "avx2,fma", _mm256_set1_pd, f64, _mm256_fmadd_pd);
    chains!(avx512_f32, "avx512f", _mm512_set1_ps, f32, _mm512_fmadd_ps);
    chains!(avx512_f64, "avx512f", _mm512_set1_pd, f64, _mm512_fmadd_pd);

    /// Dot products of pairs: 16 lanes of `x + a0 * b0 + a1 * b1`.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn avx512_bf16(links: usize) {
        let (a, b) = black_box((_mm512_set1_ps(0.001), _mm512_set1_ps(0.002)));
        let (a, b) = (_mm512_cvtne2ps_pbh(a, a), _mm512_cvtne2ps_pbh(b, b));
        let mut chains = [_mm512_set1_ps(black_box(1.0)); CHAINS];
        for _ in 0..links {
            for chain in &mut chains {
                *chain = _mm512_dpbf16_ps(*chain, a, b);
            }
        }
        black_box(chains);
    }
}

fn bytes_per_second(pool: &Pool, bytes: usize) -> f64 {
    let half = bytes / 2;
    let (source, mut target) = (vec![1u8; half], vec![0u8; half]);
    // One piece a thread: large enough for the library's copy to write past the caches.
    let size = half.div_ceil(pool.threads());
    let work: Vec<_> = target.chunks_mut(size).zip(source.chunks(size)).map(Mutex::new).collect();
    let seconds = fastest(COPIES, || {
        pool.run(work.len(), |piece| {
            let (target, source) = &mut *work[piece].lock().unwrap_or_else(PoisonError::into_inner);
            target.copy_from_slice(source);
        });
    });
    black_box(&work);
    (2 * half) as f64 / seconds
}

/// Bytes of the last-level cache of the first processor, as the system tells.
pub(super) fn last_level_cache() -> usize {
    let size = |index: usize| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()?;
        let text = text.trim();
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let unit = match unit {
            "" => 1,
            "K" => 1 << 10,
            "M" => 1 << 20,
            _ => return None,
        };
        Some(number.parse::<usize>().ok()? * unit)
    };
    (0..8).filter_map(size).max().unwrap_or(CACHE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_those_of_a_machine() {
        let pool = Pool::new(1).expect("a thread");
        // Neither a clock of 0.1 GHz nor one of 100: what a mistake in counting would look like.
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let flops = flops_per_second(&pool, dtype);
            assert!(flops > 1e8 && flops < 1e13, "{dtype}: {flops}");
        }
        let bytes = bytes_per_second(&pool, 8 << 20);
        assert!(bytes > 1e7 && bytes < 1e13, "{bytes}");
        assert!(last_level_cache() >= 64 << 10);
    }

    #[test]
    fn the_floor_is_the_higher_roof() {
        let limits = Limits { flops_per_second: 100.0, bytes_per_second: 10.0, copied_bytes: 0 };
        assert_eq!(limits.floor(200.0, 10.0), 2.0);
        assert_eq!(limits.floor(200.0, 50.0), 5.0);
    }
}
