// Random numbers: element i from block offset + i of Philox4x32-10. Computed in f64, with roundings where the CPU has
// them, and rounded to X (f32 or f64) once.
//
// Traffic: one write of every element; some 100 integer and, for normal numbers, 100 f64 operations each.
#include "philox.cuh"
#include "rows.cuh"

/// 53 bits as a number in [0, 1).
DEVICE f64 unit(u32 high, u32 low) { return (f64)(((u64)high << 32 | low) >> 11) * (1.0 / 9007199254740992.0); }

/// The next number toward minus infinity of a finite x.
DEVICE f32 next_down(f32 x) {
    u32 bits = bits_of(x);
    return x == 0 ? f32_of_bits(0x80000001u) : f32_of_bits(x > 0 ? bits - 1 : bits + 1);
}
DEVICE f64 next_down(f64 x) {
    u64 bits = bits_of(x);
    return x == 0 ? f64_of_bits(0x8000000000000001ull) : f64_of_bits(x > 0 ? bits - 1 : bits + 1);
}

/// In [low, high): low + (high - low) u.
KERNEL(random_uniform, 256, X *out, i64 count, f64 low, f64 high, u64 seed, u64 offset) {
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        Words w = philox(offset + (u64)i, 0, 0, seed);
        f64 x = add_rounded(low, multiply_rounded(high - low, unit(w.word[0], w.word[1])));
        X rounded = (X)(x < high ? x : next_down(high));
        out[i] = (f64)rounded < high ? rounded : next_down(rounded);
    }
}

/// mean + deviation sqrt(-2 ln(1 - u)) cos(2 pi v), the Box-Muller transform.
KERNEL(random_normal, 256, X *out, i64 count, f64 mean, f64 deviation, u64 seed, u64 offset) {
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        Words w = philox(offset + (u64)i, 0, 0, seed);
        f64 u = unit(w.word[0], w.word[1]), v = unit(w.word[2], w.word[3]);
        f64 radius = multiply_rounded(deviation, sqrt(multiply_rounded(-2.0, log(1.0 - u))));
        out[i] = (X)add_rounded(mean, multiply_rounded(radius, cos(multiply_rounded(6.283185307179586, v))));
    }
}
