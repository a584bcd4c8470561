// norm = sqrt(sum x^2) of contiguous x, and clip = min(1, max_norm / (norm + 1e-6)); NaN gives NaN. X: f32, bf16 or
// f64; OUT: type of both results.
//
// Squares are summed in f64: blocks of `chunk` elements, whose sums one block adds in an order of their number alone.
// Traffic: one read of x; 2 FLOPs an element.
#include "rows.cuh"

DEVICE f64 squared(X x) { return (f64)widen(x) * (f64)widen(x); }

KERNEL(global_norm_squares, 256, f64 *sums, const X *x, i64 count, i64 chunk) {
    SHARED(f64, scratch, [ROW_SCRATCH]);
    i64 start = (i64)blockIdx.x * chunk, end = start + chunk < count ? start + chunk : count; // chunk: a multiple of PACK
    i64 packs = (end - start) / PACK;
    f64 sum[1] = {0};
    for (i64 p = threadIdx.x; p < packs; p += blockDim.x) {
        Pack<X, PACK> in = load_pack<PACK>(x + start + p * PACK);
        UNROLL for (int i = 0; i < PACK; i++) sum[0] += squared(in[i]);
    }
    i64 rest = start + packs * PACK + threadIdx.x;
    if (rest < end) sum[0] += squared(x[rest]);
    row_sum(sum, scratch, blockDim.x);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum[0];
}

KERNEL(global_norm, 256, OUT *norm, OUT *clip, const f64 *sums, i64 count, f64 max_norm) {
    SHARED(f64, scratch, [ROW_SCRATCH]);
    f64 sum[1] = {0};
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) sum[0] += sums[i];
    row_sum(sum, scratch, blockDim.x);
    if (threadIdx.x > 0) return;
    f64 value = sqrt(sum[0]), factor = max_norm / (value + 1e-6);
    *norm = narrow<OUT>((Accumulator<OUT>::type)value);
    *clip = narrow<OUT>((Accumulator<OUT>::type)(factor > 1 ? 1 : factor));
}
