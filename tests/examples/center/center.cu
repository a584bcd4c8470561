// center: y = x - mean(x) over each row. X: element type, f32 or f64.
// One block of 128 threads a row; each sums every 128th element, and the partial sums are added in halves.
#include "prelude.cuh"

KERNEL(center, 128, X *out, i32 accumulate, const X *x, u32 width) {
    SHARED(X, partial, [128]);
    const u32 thread = threadIdx.x;
    x += (u64)blockIdx.x * width, out += (u64)blockIdx.x * width;
    X sum = 0;
    for (u32 i = thread; i < width; i += 128) sum += x[i];
    partial[thread] = sum;
    for (u32 half = 64; half > 0; half /= 2) {
        sync_block();
        if (thread < half) partial[thread] += partial[thread + half];
    }
    sync_block();
    const X mean = partial[0] / width;
    for (u32 i = thread; i < width; i += 128) {
        const X y = x[i] - mean;
        out[i] = accumulate ? out[i] + y : y;
    }
}
