// What kernels over rows share: accumulators, packs of elements, sums over the threads that work on one row.
//
// Before including, a kernel names its element type, `X`, and how many neighbours one access moves, `PACK` (the launcher defines
// both): 16 bytes where base, row stride and width allow, else 1. A row is `packs` packs; nothing is left over.
//
// A block is `blockDim.x / row_threads` rows in flight, `row_threads` threads each, a multiple of the warp, so that a warp never
// holds two rows. Sums are taken lane by lane, then warp by warp: the order is that of the launch's shape.
#pragma once
#include "prelude.cuh"

/// The type that sums of T are kept in: f64 for f64, else f32.
template <class T> struct Accumulator {
    typedef f32 type;
};
template <> struct Accumulator<f64> {
    typedef f64 type;
};

DEVICE f32 widen(f32 x) { return x; }
DEVICE f32 widen(bf16 x) { return to_f32(x); }
DEVICE f64 widen(f64 x) { return x; }

/// Rounds an accumulator to an element.
template <class T> DEVICE T narrow(f32 x) { return round_to<T>(x); }
template <class T> DEVICE T narrow(f64 x) { return (T)x; }

/// e^x and 1/x as precise as 16-bit elements of type T need them: a product and one instruction; else the full functions.
template <class T> DEVICE f32 exponential(f32 x) { return sizeof(T) == 2 ? fast_exp2(x * 1.44269504f) : expf(x); }
template <class T> DEVICE f64 exponential(f64 x) { return exp(x); }
template <class T> DEVICE f32 reciprocal(f32 x) { return sizeof(T) == 2 ? fast_reciprocal(x) : 1.0f / x; }
template <class T> DEVICE f64 reciprocal(f64 x) { return 1.0 / x; }

/// 1 / (1 + e^-x); 0 and 1 at the infinities.
template <class T, class A> DEVICE A sigmoid(A x) { return reciprocal<T>(A(1) + exponential<T>(-x)); }

DEVICE f32 logarithm(f32 x) { return logf(x); }
DEVICE f64 logarithm(f64 x) { return log(x); }
DEVICE f32 square_root(f32 x) { return sqrtf(x); }
DEVICE f64 square_root(f64 x) { return sqrt(x); }

/// The greater; NaN if either is.
template <class A> DEVICE A greater_or_nan(A a, A b) { return a > b || a != a ? a : b; }
/// The greater; the second if the first is NaN.
template <class A> DEVICE A greater(A a, A b) { return a > b ? a : b; }

/// The place of a thread in its block: `row` of the rows in flight, `column` of the row's threads.
struct Place {
    u32 row, column;
};
DEVICE Place place(u32 row_threads) { return Place{threadIdx.x / row_threads, threadIdx.x % row_threads}; }

/// Accumulators of shared memory that [`row_reduce`] takes: one for each value and warp of a block of 1024 threads.
constexpr int ROW_SCRATCH = 32;

/// Folds each of M values over the threads of a row; every one of them gets the results. All threads of the block call together.
/// `scratch`: M * ROW_SCRATCH accumulators, free again when the function returns.
template <int M, class A, class F> DEVICE void row_reduce(A (&x)[M], A *scratch, u32 row_threads, F fold) {
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int distance = 16; distance > 0; distance /= 2) x[m] = fold(x[m], shuffle_xor(x[m], distance));
    if (row_threads == WARP) return;
    if (lane_index() == 0)
        UNROLL for (int m = 0; m < M; m++) scratch[m * ROW_SCRATCH + warp_index()] = x[m];
    sync_block();
    u32 warps = row_threads / WARP, first = warp_index() / warps * warps;
    UNROLL for (int m = 0; m < M; m++) {
        x[m] = scratch[m * ROW_SCRATCH + first];
        for (u32 w = 1; w < warps; w++) x[m] = fold(x[m], scratch[m * ROW_SCRATCH + first + w]);
    }
    sync_block(); // scratch has been read
}

template <int M, class A> DEVICE void row_sum(A (&x)[M], A *scratch, u32 row_threads) {
    row_reduce(x, scratch, row_threads, [](A a, A b) { return a + b; });
}

/// Calls `body(row, pack)` once for every pack of a [rows, packs] matrix, neighbours in neighbouring threads, over the whole grid.
template <class Index, class F> DEVICE void for_each_pack_as(Index rows, Index packs, F body) {
    Index count = rows * packs, step = (Index)gridDim.x * blockDim.x;
    for (Index i = (Index)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        Index row = i / packs;
        body((i64)row, (i64)(i - row * packs));
    }
}
template <class F> DEVICE void for_each_pack(i64 rows, i64 packs, F body) {
    // Below 2^31 the division takes 32-bit instructions.
    if (rows * packs < (i64)1 << 31) for_each_pack_as<u32>((u32)rows, (u32)packs, body);
    else for_each_pack_as<u64>((u64)rows, (u64)packs, body);
}

/// Writes a pack of accumulators, or adds it to what is there.
template <class T, int N, class A> DEVICE void put_pack(T *to, const A (&x)[N], bool accumulate) {
    Pack<T, N> out;
    if (accumulate) {
        Pack<T, N> old = load_pack<N>(to);
        UNROLL for (int i = 0; i < N; i++) out[i] = narrow<T>(widen(old[i]) + x[i]);
    } else {
        UNROLL for (int i = 0; i < N; i++) out[i] = narrow<T>(x[i]);
    }
    store_pack(to, out);
}
