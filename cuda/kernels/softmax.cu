// Softmax of rows, out_i = e^(x_i - max) / sum_j e^(x_j - max), and its gradient, d_x_i (+)= y_i (d_y_i - sum_j d_y_j
// y_j). All matrices [rows, packs], rows with strides of their own. A row of -inf gives NaN. X: f32, bf16 or f64.
//
// Maximum and sum are taken together, in one sweep; rows stay in shared memory between the sweeps where they fit.
// Traffic: forward one read and one write of every element, backward two reads and one write; one more read each where
// rows do not fit. About 15 FLOPs an element.
#include "rows.cuh"

typedef Accumulator<X>::type A;

KERNEL_OCCUPANCY(softmax, 512, 1, X *out, i64 out_stride, const X *x, i64 x_stride, i64 rows, i64 packs,
                 u32 row_threads, i32 cached) {
    SHARED(A, scratch, [ROW_SCRATCH]);
    DYNAMIC_SHARED(X, shared);
    Place at = place(row_threads);
    i64 n = (i64)blockIdx.x * (blockDim.x / row_threads) + at.row;
    Share share(n < rows ? packs : 0, at.column, row_threads);
    CachedRow<X, PACK> row(x + n * x_stride, cached ? shared + at.row * packs * PACK : nullptr);
    Exponentials<X> sum;
    sweep(row, share, [&](i32, const Pack<X, PACK> &in) { sum.add(in); });
    sum.combine(scratch, row_threads);
    A top = sum.pivot(), scale = A(1) / sum.total;
    for (i32 p = share.column; p < share.packs; p += share.step) {
        Pack<X, PACK> in = row.again(p);
        A y[PACK];
        UNROLL for (int i = 0; i < PACK; i++) y[i] = exponential<X>(widen(in[i]) - top) * scale;
        put_pack(out + n * out_stride + p * PACK, y, false);
    }
}

KERNEL_OCCUPANCY(softmax_backward, 512, 1, X *d_x, i64 d_x_stride, i32 accumulate, const X *d_y, i64 d_y_stride,
                 const X *y, i64 y_stride, i64 rows, i64 packs, u32 row_threads, i32 cached) {
    SHARED(A, scratch, [ROW_SCRATCH]);
    DYNAMIC_SHARED(X, shared);
    Place at = place(row_threads);
    i64 n = (i64)blockIdx.x * (blockDim.x / row_threads) + at.row;
    Share share(n < rows ? packs : 0, at.column, row_threads);
    X *cache = cached ? shared + 2 * at.row * packs * PACK : nullptr;
    CachedRow<X, PACK> gradient(d_y + n * d_y_stride, cache);
    CachedRow<X, PACK> output(y + n * y_stride, cached ? cache + packs * PACK : nullptr);
    A dot[1] = {0};
    sweep(gradient, output, share, [&](i32, const Pack<X, PACK> &g, const Pack<X, PACK> &o) {
        UNROLL for (int i = 0; i < PACK; i++) dot[0] += widen(g[i]) * widen(o[i]);
    });
    row_sum(dot, scratch, row_threads);
    for (i32 p = share.column; p < share.packs; p += share.step) {
        Pack<X, PACK> g = gradient.again(p), o = output.again(p);
        A d[PACK];
        UNROLL for (int i = 0; i < PACK; i++) d[i] = widen(o[i]) * (widen(g[i]) - dot[0]);
        put_pack(d_x + n * d_x_stride + p * PACK, d, accumulate);
    }
}
