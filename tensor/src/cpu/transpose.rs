//! Small squares of a matrix, transposed in registers.

use super::math::Float;

/// Side of the squares; divides the width of every panel of a kernel.
pub(super) const SQUARE: usize = 4;

/// The transpose; of f32 in registers where it is known how.
#[inline(always)]
pub(super) fn transpose<F: Float>(lines: [[F; SQUARE]; SQUARE]) -> [[F; SQUARE]; SQUARE] {
    #[cfg(target_arch = "x86_64")]
    if size_of::<F>() == size_of::<f32>() {
        use std::arch::x86_64::{__m128, _mm_movehl_ps, _mm_movelh_ps, _mm_unpackhi_ps, _mm_unpacklo_ps};
        let [a, b, c, d] = bytemuck::cast::<_, [__m128; SQUARE]>(lines);
        // SAFETY: SSE is in the baseline of x86-64.
        let lines = unsafe {
            let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
            [
                _mm_movelh_ps(ab, cd),
                _mm_movehl_ps(cd, ab),
                _mm_movelh_ps(ab_high, cd_high),
                _mm_movehl_ps(cd_high, ab_high),
            ]
        };
        return bytemuck::cast(lines);
    }
    std::array::from_fn(|i| lines.map(|line| line[i]))
}
