//! Instruction paths of the CPU backend: portable, AVX2 + FMA, AVX-512 without and with products of bf16; chosen once, at run time.
//! A kernel is written once as an `#[inline(always)]` body generic over [`Isa`]; [`dispatch`] calls it inside a
//! function compiled for the path's instructions, where the compiler vectorises its loops. Dispatch per row or
//! block of work, never per element. Only what is inlined into that function gets the path's instructions: a closure
//! handed to a function that stays a call (a thread-local's `with`, a pool's `run`) is compiled for the baseline,
//! where an FMA is a slow library call; dispatch inside it instead. `PATCHGPT_CPU=portable|avx2|avx512|avx512bf16` forces a path.

use super::math::{round, widen};
use std::sync::OnceLock;

/// The environment variable that forces an instruction path.
pub(crate) const VARIABLE: &str = "PATCHGPT_CPU";

/// An instruction path. `Portable` is the target's baseline (SSE2 on x86-64, NEON on aarch64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// What every processor of the target has.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same and AVX512_BF16, which products and attention of bf16 take, and rows that are rounded to it; all other kernels are those of
    /// [`Path::Avx512`].
    Avx512Bf16,
}

impl Path {
    /// All paths, slowest first.
    pub(crate) const ALL: [Path; 4] = [Path::Portable, Path::Avx2, Path::Avx512, Path::Avx512Bf16];

    /// The name `PATCHGPT_CPU` takes.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Path::Portable => "portable",
            Path::Avx2 => "avx2",
            Path::Avx512 => "avx512",
            Path::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Whether the path has products of bf16, so that nothing is gained by widening matrices.
    pub(crate) fn multiplies_bf16(self) -> bool {
        self == Path::Avx512Bf16
    }

    /// Whether this processor has the path's instructions.
    pub(crate) fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Path::Portable => true,
            Path::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Path::Avx512 => {
                Path::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            Path::Avx512Bf16 => Path::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Path::Portable
        }
    }

    /// The fastest path of this processor.
    pub(crate) fn best() -> Path {
        let available = |path: &&Path| path.is_available();
        *Path::ALL.iter().rev().find(available).unwrap_or(&Path::Portable)
    }
}

/// The path that `request` (the value of `PATCHGPT_CPU`, if set) asks for, or the fastest one.
fn choose(request: Option<&str>) -> Result<Path, String> {
    let Some(request) = request.map(str::trim).filter(|value| !value.is_empty()) else {
        return Ok(Path::best());
    };
    let Some(path) = Path::ALL.into_iter().find(|path| path.name() == request) else {
        return Err(format!(
            "{VARIABLE}={request} is not an instruction path; use portable, avx2, avx512 or avx512bf16, or unset it"
        ));
    };
    if path.is_available() {
        Ok(path)
    } else {
        Err(format!(
            "{VARIABLE}={request} asks for instructions this processor lacks; \
             the fastest path it has is {}; unset {VARIABLE} to use it",
            Path::best().name()
        ))
    }
}

/// The path of this process: `PATCHGPT_CPU` if set, else the fastest one. Read once; the CPU device calls it when
/// opened and hands the error, which names the value and the remedy, to its user.
pub(crate) fn detect() -> Result<Path, String> {
    static CHOSEN: OnceLock<Result<Path, String>> = OnceLock::new();
    let read = || match std::env::var(VARIABLE) {
        Ok(value) => choose(Some(&value)),
        Err(std::env::VarError::NotPresent) => choose(None),
        Err(std::env::VarError::NotUnicode(value)) => choose(Some(&value.to_string_lossy())),
    };
    CHOSEN.get_or_init(read).clone()
}

/// The path kernels run on. Portable where [`detect`] failed, which a device has reported by then.
#[inline]
pub(crate) fn path() -> Path {
    static PATH: OnceLock<Path> = OnceLock::new();
    *PATH.get_or_init(|| detect().unwrap_or(Path::Portable))
}

/// A token of an instruction path: a body generic over it is compiled once for each.
pub(crate) trait Isa: Copy + Send + Sync + 'static {
    /// f32 values in a vector register.
    const LANES: usize;
    /// `a * b + c`, rounded once where the path has the instruction.
    fn fma_f32(a: f32, b: f32, c: f32) -> f32;
    /// `a * b + c`, rounded once where the path has the instruction.
    fn fma_f64(a: f64, b: f64, c: f64) -> f64;

    /// `sum += a * b` for each of `sums` and its `b`, in registers where both are whole vectors of a length known when this is compiled: left to
    /// themselves, compilers vectorise a tile of such rows on some paths and not on others.
    #[inline(always)]
    fn axpy_f32(a: f32, b: &[f32], sums: &mut [f32]) {
        for (sum, b) in sums.iter_mut().zip(b) {
            *sum = Self::fma_f32(a, *b, *sum);
        }
    }

    /// `sum += a.0 * b.0 + a.1 * b.1` for each of `sums` and its `b`, both products added one after the other; in a pair of bf16 the first is
    /// the lower half. AVX512_BF16 takes subnormal numbers for zeros.
    #[inline(always)]
    fn dot_pairs(a: u32, b: &[u32], sums: &mut [f32]) {
        let halves = |pair: u32| [f32::from_bits(pair << 16), f32::from_bits(pair & 0xFFFF_0000)];
        let a = halves(a);
        for (sum, b) in sums.iter_mut().zip(b) {
            let b = halves(*b);
            *sum = Self::fma_f32(a[0], b[0], Self::fma_f32(a[1], b[1], *sum));
        }
    }

    /// Pairs of bf16: the bits of `first` are in their lower halves, those of `second` in the upper.
    #[inline(always)]
    fn join_bf16(first: &[u16], second: &[u16], out: &mut [u32]) {
        for ((out, first), second) in out.iter_mut().zip(first).zip(second) {
            *out = u32::from(*first) | u32::from(*second) << 16;
        }
    }

    /// The values whose bits in bf16 these are, exact.
    #[inline(always)]
    fn widen_bf16(x: &[u16], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = widen(*x);
        }
    }

    /// The bits of bf16 nearest to each of `x`, ties to even; a NaN stays one. AVX512_BF16 makes zeros of subnormal numbers.
    #[inline(always)]
    fn round_bf16(x: &[f32], out: &mut [u16]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = round(*x);
        }
    }

    /// Pairs of bf16, rounded as by [`Isa::round_bf16`]: in the lower half what is in `first`, in the upper what is in `second`.
    #[inline(always)]
    fn round_pairs(first: &[f32], second: &[f32], out: &mut [u32]) {
        for ((out, first), second) in out.iter_mut().zip(first).zip(second) {
            *out = u32::from(round(*first)) | u32::from(round(*second)) << 16;
        }
    }
}

/// Token of [`Path::Portable`].
#[derive(Clone, Copy)]
pub(crate) struct Portable(());

/// Token of [`Path::Avx2`].
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// Token of [`Path::Avx512`], and of [`Path::Avx512Bf16`] where nothing multiplies bf16.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Isa for Portable {
    const LANES: usize = 4;

    // aarch64 has the instruction in its baseline; elsewhere `mul_add` would call a library function.
    #[inline(always)]
    fn fma_f32(a: f32, b: f32, c: f32) -> f32 {
        if cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c }
    }

    #[inline(always)]
    fn fma_f64(a: f64, b: f64, c: f64) -> f64 {
        if cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c }
    }
}

/// `Isa::axpy_f32` of vectors of so many lanes: broadcast, load, multiply and add, store.
#[cfg(target_arch = "x86_64")]
macro_rules! axpy_f32 {
    ($lanes:literal, $set:ident, $load:ident, $fma:ident, $store:ident) => {
        #[inline(always)]
        fn axpy_f32(a: f32, b: &[f32], sums: &mut [f32]) {
            use std::arch::x86_64::{$fma, $load, $set, $store};
            let ((sums, rest), (b, _)) = (sums.as_chunks_mut::<$lanes>(), b.as_chunks::<$lanes>());
            assert!(rest.is_empty(), "tiles of this path are whole vectors");
            for (sums, b) in sums.iter_mut().zip(b) {
                // SAFETY: the token exists only where the path's instructions do; both sides are whole vectors.
                unsafe { $store(sums.as_mut_ptr(), $fma($set(a), $load(b.as_ptr()), $load(sums.as_ptr()))) };
            }
        }
    };
}

/// `Isa::widen_bf16` of vectors of so many lanes: bits become the upper halves of integers. (Of a length that is known, compilers make no vectors.)
#[cfg(target_arch = "x86_64")]
macro_rules! widen_bf16 {
    ($lanes:literal, $load:ident, $extend:ident, $shift:ident, $store:ident) => {
        #[inline(always)]
        fn widen_bf16(x: &[u16], out: &mut [f32]) {
            use std::arch::x86_64::{$extend, $load, $shift, $store};
            let ((vectors, rest), (to, last)) = (x.as_chunks::<$lanes>(), out.as_chunks_mut::<$lanes>());
            for (x, to) in vectors.iter().zip(to) {
                // SAFETY: the token exists only where the path's instructions do; both sides are whole vectors.
                unsafe { $store(to.as_mut_ptr().cast(), $shift::<16>($extend($load(x.as_ptr().cast())))) };
            }
            for (x, to) in rest.iter().zip(last) {
                *to = widen(*x);
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
impl Isa for Avx2 {
    const LANES: usize = 8;

    axpy_f32!(8, _mm256_set1_ps, _mm256_loadu_ps, _mm256_fmadd_ps, _mm256_storeu_ps);
    widen_bf16!(8, _mm_loadu_si128, _mm256_cvtepu16_epi32, _mm256_slli_epi32, _mm256_storeu_si256);

    #[inline(always)]
    fn fma_f32(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn fma_f64(a: f64, b: f64, c: f64) -> f64 {
        a.mul_add(b, c)
    }
}

#[cfg(target_arch = "x86_64")]
impl Isa for Avx512 {
    const LANES: usize = 16;

    axpy_f32!(16, _mm512_set1_ps, _mm512_loadu_ps, _mm512_fmadd_ps, _mm512_storeu_ps);
    widen_bf16!(16, _mm256_loadu_si256, _mm512_cvtepu16_epi32, _mm512_slli_epi32, _mm512_storeu_si512);

    #[inline(always)]
    fn join_bf16(first: &[u16], second: &[u16], out: &mut [u32]) {
        use std::arch::x86_64::{
            _mm256_maskz_loadu_epi16, _mm512_cvtepu16_epi32, _mm512_mask_storeu_epi32, _mm512_or_si512,
            _mm512_slli_epi32,
        };
        let length = out.len();
        assert!(first.len() >= length && second.len() >= length, "a pair for each place");
        for place in (0..length).step_by(16) {
            let mask = u16::MAX >> (16 - (length - place).min(16));
            // SAFETY: the token exists only where the path's instructions do; of each vector only what is inside the slices is touched.
            unsafe {
                let first = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, first.as_ptr().add(place).cast()));
                let second = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, second.as_ptr().add(place).cast()));
                let pairs = _mm512_or_si512(first, _mm512_slli_epi32::<16>(second));
                _mm512_mask_storeu_epi32(out.as_mut_ptr().add(place).cast(), mask, pairs);
            }
        }
    }

    #[inline(always)]
    fn fma_f32(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn fma_f64(a: f64, b: f64, c: f64) -> f64 {
        a.mul_add(b, c)
    }
}

/// Token of [`Path::Avx512Bf16`].
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(());

#[cfg(target_arch = "x86_64")]
impl Isa for Avx512Bf16 {
    const LANES: usize = Avx512::LANES;

    #[inline(always)]
    fn fma_f32(a: f32, b: f32, c: f32) -> f32 {
        Avx512::fma_f32(a, b, c)
    }

    #[inline(always)]
    fn fma_f64(a: f64, b: f64, c: f64) -> f64 {
        Avx512::fma_f64(a, b, c)
    }

    #[inline(always)]
    fn join_bf16(first: &[u16], second: &[u16], out: &mut [u32]) {
        Avx512::join_bf16(first, second, out);
    }

    #[inline(always)]
    fn widen_bf16(x: &[u16], out: &mut [f32]) {
        Avx512::widen_bf16(x, out);
    }

    #[inline(always)]
    fn dot_pairs(a: u32, b: &[u32], sums: &mut [f32]) {
        use std::arch::x86_64::{
            __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_set1_epi32, _mm512_storeu_ps,
        };
        use std::mem::transmute;
        let ((sums, rest), (b, _)) = (sums.as_chunks_mut::<16>(), b.as_chunks::<16>());
        assert!(rest.is_empty(), "tiles of this path are whole vectors");
        for (sums, b) in sums.iter_mut().zip(b) {
            // SAFETY: the token exists only where the path's instructions do; vectors are 16 values, of whatever bits.
            unsafe {
                let a = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(a.cast_signed()));
                let b = transmute::<[u32; 16], __m512bh>(*b);
                let sum = _mm512_dpbf16_ps(_mm512_loadu_ps(sums.as_ptr()), a, b);
                _mm512_storeu_ps(sums.as_mut_ptr(), sum);
            }
        }
    }
    #[inline(always)]
    fn round_bf16(x: &[f32], out: &mut [u16]) {
        use std::arch::x86_64::{__m256bh, _mm512_cvtneps_pbh, _mm512_loadu_ps};
        let ((vectors, rest), (to, last)) = (x.as_chunks::<16>(), out.as_chunks_mut::<16>());
        for (x, to) in vectors.iter().zip(to) {
            // SAFETY: the token exists only where the path's instructions do; vectors are 16 values, of whatever bits.
            *to =
                unsafe { std::mem::transmute::<__m256bh, [u16; 16]>(_mm512_cvtneps_pbh(_mm512_loadu_ps(x.as_ptr()))) };
        }
        for (x, to) in rest.iter().zip(last) {
            *to = round(*x);
        }
    }

    #[inline(always)]
    fn round_pairs(first: &[f32], second: &[f32], out: &mut [u32]) {
        use std::arch::x86_64::{
            __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_permutexvar_epi16, _mm512_storeu_si512,
        };
        use std::mem::transmute;
        /// Where value i of `first`, then that of `second`, stands among the values of both.
        const TURNS: [u16; 32] = {
            let mut turns = [0; 32];
            let mut i = 0;
            while i < 32 {
                turns[i] = (i / 2 + i % 2 * 16) as u16;
                i += 1;
            }
            turns
        };
        let ((out, rest), (first, _)) = (out.as_chunks_mut::<16>(), first.as_chunks::<16>());
        assert!(rest.is_empty(), "rows of pairs of this path are whole vectors");
        for ((out, first), second) in out.iter_mut().zip(first).zip(second.as_chunks::<16>().0) {
            // SAFETY: the token exists only where the path's instructions do; vectors are 16 values, of whatever bits.
            unsafe {
                let both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(second.as_ptr()), _mm512_loadu_ps(first.as_ptr()));
                let turns = transmute::<[u16; 32], __m512i>(TURNS);
                let pairs = _mm512_permutexvar_epi16(turns, transmute::<__m512bh, __m512i>(both));
                _mm512_storeu_si512(out.as_mut_ptr().cast(), pairs);
            }
        }
    }
}

/// A piece of work compiled once for each path. Mark `run` `#[inline(always)]`, and what it calls.
pub(crate) trait Kernel {
    /// What the work returns.
    type Output;
    /// Does the work with the instructions of `isa`.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,avx2")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,avx2")]
fn run_avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512Bf16(()))
}

/// Runs `kernel` on the path of this process.
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    match path() {
        // SAFETY: `path` names only paths that `is_available` confirmed for this processor.
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 | Path::Avx512Bf16 => unsafe { run_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => unsafe { run_avx2(kernel) },
        _ => kernel.run(Portable(())),
    }
}

/// [`dispatch`] for a kernel that multiplies or rounds to bf16, for which [`Path::Avx512Bf16`] has instructions of its own.
#[inline]
pub(crate) fn dispatch_bf16<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if path() == Path::Avx512Bf16 {
        // SAFETY: as in `dispatch`.
        return unsafe { run_avx512_bf16(kernel) };
    }
    dispatch(kernel)
}

/// Runs `kernel` on `path`; a path this processor lacks panics.
#[inline]
pub(crate) fn dispatch_on<K: Kernel>(path: Path, kernel: K) -> K::Output {
    assert!(path.is_available(), "path {} is not available here", path.name());
    match path {
        // SAFETY: the assertion above.
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 | Path::Avx512Bf16 => unsafe { run_avx512(kernel) },
        // SAFETY: the assertion above.
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => unsafe { run_avx2(kernel) },
        _ => kernel.run(Portable(())),
    }
}

/// [`dispatch_bf16`] on `path`, as [`dispatch_on`].
#[inline]
pub(crate) fn dispatch_bf16_on<K: Kernel>(path: Path, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if path == Path::Avx512Bf16 {
        assert!(path.is_available(), "path {} is not available here", path.name());
        // SAFETY: the assertion above.
        return unsafe { run_avx512_bf16(kernel) };
    }
    dispatch_on(path, kernel)
}

/// Asks for the cache line at `place`, into the cache of level 1 or 2.
#[inline(always)]
pub(crate) fn prefetch<const LEVEL: usize, T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint; any address will do.
        unsafe {
            match LEVEL {
                1 => _mm_prefetch::<_MM_HINT_T0>(place.cast()),
                _ => _mm_prefetch::<_MM_HINT_T1>(place.cast()),
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// The paths of this processor, for tests that run on each.
#[cfg(test)]
pub(crate) fn available() -> impl Iterator<Item = Path> {
    Path::ALL.into_iter().filter(|path| path.is_available())
}

#[cfg(test)]
mod tests;
