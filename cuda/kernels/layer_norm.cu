// LayerNorm of rows (Ba et al., arXiv 1607.06450): mean, rstd = 1 / sqrt(var(x) + eps) with the variance around the
// mean, out = (x - mean) * rstd * weight + bias. With an addend, x + addend, rounded to X, is written to `sum` and takes the
// place of x. The gradient, with x^ = (x - mean) * rstd and g = d_out * weight: d_x
// (+)= rstd * (g - mean(g) - x^ * mean(g * x^)), d_weight = sum over rows of d_out * x^, d_bias = sum over rows of
// d_out. x, out, d_out, d_x [rows, packs]; weight and bias [packs]; mean and rstd [rows], f32. X: f32, bf16 or f64.
//
// Rows stay in shared memory between the sweeps where they fit. Weight and bias: a block walks down `rows_per_block`
// rows, each thread summing its own columns, and writes partial rows; `reduce_columns` adds those in order. Traffic:
// forward one read and one write of every element, two of each with an addend, backward two reads and one write. 8 FLOPs an element forward, 14
// backward.
#include "rows.cuh"

typedef Accumulator<X>::type A;

KERNEL_OCCUPANCY(layer_norm, 512, 1, X *out, i64 out_stride, A *mean, i64 mean_stride, A *rstd, i64 rstd_stride,
                 const X *x, i64 x_stride, const X *addend, i64 addend_stride, X *sum, i64 sum_stride, const X *weight,
                 const X *bias, i64 rows, i64 packs, f64 eps, u32 row_threads, i32 cached) {
    SHARED(A, scratch, [ROW_SCRATCH]);
    DYNAMIC_SHARED(X, shared);
    Place at = place(row_threads);
    i64 n = (i64)blockIdx.x * (blockDim.x / row_threads) + at.row;
    bool live = n < rows;
    Share share(live ? packs : 0, at.column, row_threads);
    A width = (A)(packs * PACK);
    A total[1] = {0};
    CachedRow<X, PACK> row = sweep_sum<X, PACK>(
        x + n * x_stride, addend ? addend + n * addend_stride : nullptr, sum + n * sum_stride,
        cached ? shared + at.row * packs * PACK : nullptr, share, [&](i32, const Pack<X, PACK> &in) {
            UNROLL for (int i = 0; i < PACK; i++) total[0] += widen(in[i]);
        });
    row_sum(total, scratch, row_threads);
    A m = total[0] / width;
    A squares[1] = {0};
    for (i32 p = share.column; p < share.packs; p += share.step) {
        Pack<X, PACK> in = row.again(p);
        UNROLL for (int i = 0; i < PACK; i++) squares[0] += (widen(in[i]) - m) * (widen(in[i]) - m);
    }
    row_sum(squares, scratch, row_threads);
    A r = A(1) / square_root(squares[0] / width + (A)eps);
    if (live && at.column == 0) {
        mean[n * mean_stride] = m;
        rstd[n * rstd_stride] = r;
    }
    for (i32 p = share.column; p < share.packs; p += share.step) {
        Pack<X, PACK> in = row.again(p), w = load_pack<PACK>(weight + p * PACK), b = load_pack<PACK>(bias + p * PACK);
        A y[PACK];
        UNROLL for (int i = 0; i < PACK; i++) y[i] = (widen(in[i]) - m) * r * widen(w[i]) + widen(b[i]);
        put_pack(out + n * out_stride + p * PACK, y, false);
    }
}

/// Each of `d_x`, `d_weight` and `d_bias` may be null; d_x may be d_out. `d_weight`, `d_bias`: a partial row for each
/// block.
KERNEL_OCCUPANCY(layer_norm_backward, 512, 1, X *d_x, i64 d_x_stride, i32 accumulate, A *d_weight, A *d_bias,
                 const X *d_out, i64 d_out_stride, const X *x, i64 x_stride, const X *weight, const A *mean,
                 i64 mean_stride, const A *rstd, i64 rstd_stride, i64 rows, i64 packs, i64 rows_per_block,
                 u32 row_threads, i32 cached) {
    SHARED(A, scratch, [2 * ROW_SCRATCH]);
    // flight rows of sums for the weight and for the bias, then flight times a row of d_out and one of x
    DYNAMIC_SHARED(A, shared);
    Place at = place(row_threads);
    u32 flight = blockDim.x / row_threads;
    i64 width = packs * PACK;
    ColumnSums<A, PACK> weights(d_weight ? d_weight + blockIdx.x * width : nullptr, cached ? shared : nullptr, at, flight,
                                row_threads, packs);
    ColumnSums<A, PACK> biases(d_bias ? d_bias + blockIdx.x * width : nullptr, cached ? shared + flight * width : nullptr, at,
                               flight, row_threads, packs);
    X *cache = cached ? (X *)(shared + 2 * flight * width) + 2 * at.row * width : nullptr;

    i64 start = (i64)blockIdx.x * rows_per_block, end = start + rows_per_block < rows ? start + rows_per_block : rows;
    for (i64 base = start; base < end; base += flight) {
        i64 n = base + at.row;
        bool live = n < end;
        Share share(live ? packs : 0, at.column, row_threads);
        CachedRow<X, PACK> gradient(d_out + n * d_out_stride, cache);
        CachedRow<X, PACK> input(x + n * x_stride, cache ? cache + width : nullptr);
        A m = live ? mean[n * mean_stride] : A(0), r = live ? rstd[n * rstd_stride] : A(0);
        A sums[2] = {0, 0}; // of g and of g * x^
        sweep(gradient, input, share, [&](i32 p, const Pack<X, PACK> &d, const Pack<X, PACK> &in) {
            Pack<X, PACK> w = load_pack<PACK>(weight + p * PACK);
            A terms[PACK], plain[PACK];
            UNROLL for (int i = 0; i < PACK; i++) {
                plain[i] = widen(d[i]);
                terms[i] = plain[i] * ((widen(in[i]) - m) * r);
                sums[0] += plain[i] * widen(w[i]);
                sums[1] += terms[i] * widen(w[i]);
            }
            weights.add(p, terms);
            biases.add(p, plain);
        });
        if (!d_x) continue;
        row_sum(sums, scratch, row_threads);
        A first = sums[0] / (A)width, second = sums[1] / (A)width;
        for (i32 p = share.column; p < share.packs; p += share.step) {
            Pack<X, PACK> d = gradient.again(p), in = input.again(p), w = load_pack<PACK>(weight + p * PACK);
            A out[PACK];
            UNROLL for (int i = 0; i < PACK; i++)
                out[i] = r * (widen(d[i]) * widen(w[i]) - first - (widen(in[i]) - m) * r * second);
            put_pack(d_x + n * d_x_stride + p * PACK, out, accumulate);
        }
    }
    weights.finish();
    biases.finish();
}
