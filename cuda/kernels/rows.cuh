// What kernels over rows share: accumulators, packs of elements, sums over the threads that work on one row.
//
// Before including, a kernel names its element type, `X`, and how many neighbours one access moves, `PACK` (the
// launcher defines both): 16 bytes where base, row stride and width allow, else 1. A row is `packs` packs; nothing is
// left over.
//
// A block is `blockDim.x / row_threads` rows in flight, `row_threads` threads each, a multiple of the warp, so that a
// warp never holds two rows. Sums are taken lane by lane, then warp by warp: the order is that of the launch's shape.
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

/// e^x and 1/x as precise as 16-bit elements of type T need them: a product and one instruction; else the full
/// functions.
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

/// Folds each of M values over the threads of a row; every one of them gets the results. All threads of the block call
/// together. `scratch`: M * ROW_SCRATCH accumulators, free again when the function returns.
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

/// Calls `body(row, pack)` once for every pack of a [rows, packs] matrix, neighbours in neighbouring threads, over the
/// whole grid.
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

/// Neighbours of T moved by one access when N of them take part in another type's pack: at most 16 bytes.
template <class T, int N> constexpr int PART = N * (int)sizeof(T) > 16 ? PACK_16<T> : N;

/// Writes N accumulators as elements of T, or adds them to what is there.
template <class T, int N, class A> DEVICE void put_pack(T *to, const A (&x)[N], bool accumulate) {
    UNROLL for (int start = 0; start < N; start += PART<T, N>) {
        Pack<T, PART<T, N>> out;
        if (accumulate) {
            Pack<T, PART<T, N>> old = load_pack<PART<T, N>>(to + start);
            UNROLL for (int i = 0; i < PART<T, N>; i++) out[i] = narrow<T>(widen(old[i]) + x[start + i]);
        } else {
            UNROLL for (int i = 0; i < PART<T, N>; i++) out[i] = narrow<T>(x[start + i]);
        }
        store_pack(to + start, out);
    }
}

/// Reads N elements of T as accumulators.
template <class T, int N, class A> DEVICE void get_pack(const T *from, A (&x)[N]) {
    UNROLL for (int start = 0; start < N; start += PART<T, N>) {
        Pack<T, PART<T, N>> in = load_pack<PART<T, N>>(from + start);
        UNROLL for (int i = 0; i < PART<T, N>; i++) x[start + i] = widen(in[i]);
    }
}

/// A row that is read from global memory once, and then from shared memory where it has room there (`cache` not null,
/// 16-byte aligned). A thread asks again only for packs that its sweep brought, so no barrier is needed.
template <class T, int N> struct CachedRow {
    const T *row;
    T *cache;
    DEVICE CachedRow(const T *row, T *cache) : row(row), cache(cache) {}

    DEVICE Pack<T, N> load(i32 pack) const { return load_pack<N>(row + (i64)pack * N); }
    DEVICE void keep(i32 pack, const Pack<T, N> &x) const {
        if (cache) store_pack(cache + (i64)pack * N, x);
    }
    DEVICE Pack<T, N> again(i32 pack) const { return load_pack<N>((cache ? cache : row) + (i64)pack * N); }
};

/// The packs of a row that are a thread's: column, column + step, ... below `packs`.
struct Share {
    i32 packs;
    i32 column, step;
    DEVICE Share(i64 packs, u32 column, u32 step) : packs((i32)packs), column((i32)column), step((i32)step) {}
};

/// Accesses that a thread has under way before it uses the first: enough to hide memory's latency with the blocks that
/// fit.
constexpr int AHEAD = 4;

/// The first sweep over a row: calls `body(pack, elements)` for each pack of the share.
template <class T, int N, class F> DEVICE void sweep(const CachedRow<T, N> &row, Share share, F body) {
    for (i32 base = share.column; base < share.packs; base += AHEAD * share.step) {
        Pack<T, N> x[AHEAD];
        UNROLL for (int j = 0; j < AHEAD; j++)
            if (base + j * share.step < share.packs) x[j] = row.load(base + j * share.step);
        UNROLL for (int j = 0; j < AHEAD; j++) {
            i32 p = base + j * share.step;
            if (p >= share.packs) break;
            row.keep(p, x[j]);
            body(p, x[j]);
        }
    }
}

/// The first sweep over two rows together: `body(pack, elements of a, elements of b)`.
template <class T, int N, class F>
DEVICE void sweep(const CachedRow<T, N> &a, const CachedRow<T, N> &b, Share share, F body) {
    for (i32 base = share.column; base < share.packs; base += AHEAD / 2 * share.step) {
        Pack<T, N> x[AHEAD / 2], y[AHEAD / 2];
        UNROLL for (int j = 0; j < AHEAD / 2; j++)
            if (base + j * share.step < share.packs) {
                x[j] = a.load(base + j * share.step);
                y[j] = b.load(base + j * share.step);
            }
        UNROLL for (int j = 0; j < AHEAD / 2; j++) {
            i32 p = base + j * share.step;
            if (p >= share.packs) break;
            a.keep(p, x[j]);
            b.keep(p, y[j]);
            body(p, x[j], y[j]);
        }
    }
}

/// The first sweep over a row or, where there is an addend, over the sum of both, rounded to T and written to `sum`.
/// Returns the row that was swept over, to be read again.
template <class T, int N, class F>
DEVICE CachedRow<T, N> sweep_sum(const T *x, const T *addend, T *sum, T *cache, Share share, F body) {
    CachedRow<T, N> row(addend ? sum : x, cache);
    if (!addend) {
        sweep(row, share, body);
        return row;
    }
    CachedRow<T, N> first(x, nullptr), second(addend, nullptr);
    sweep(first, second, share, [&](i32 p, const Pack<T, N> &a, const Pack<T, N> &b) {
        Pack<T, N> both;
        UNROLL for (int i = 0; i < N; i++) both[i] = narrow<T>(widen(a[i]) + widen(b[i]));
        store_pack(sum + (i64)p * N, both);
        row.keep(p, both);
        body(p, both);
    });
    return row;
}

/// sum e^x, kept as `total` = sum e^(x - top) with `top` the greatest x so far, NaN aside, which `total` meets.
template <class T> struct Exponentials {
    typedef typename Accumulator<T>::type A;
    A top, total;
    DEVICE Exponentials() : top((A)-F32_INFINITY), total(0) {}

    /// What is subtracted before the exponential: 0 where there is nothing but -inf, whose exponential is 0 as it is.
    DEVICE A pivot() const { return top == (A)-F32_INFINITY ? A(0) : top; }

    DEVICE void raise(A to) {
        A old = top;
        top = greater(to, old);
        total *= exponential<T>(old - pivot());
    }
    template <int N> DEVICE void add(const Pack<T, N> &x) {
        A most = top;
        UNROLL for (int i = 0; i < N; i++) most = greater((A)widen(x[i]), most);
        if (most > top) raise(most);
        A at = pivot();
        UNROLL for (int i = 0; i < N; i++) total += exponential<T>(widen(x[i]) - at);
    }
    /// Combines the threads of a row; each gets the whole.
    DEVICE void combine(A *scratch, u32 row_threads) {
        A most[1] = {top};
        row_reduce(most, scratch, row_threads, [](A a, A b) { return greater(a, b); });
        raise(most[0]);
        A sum[1] = {total};
        row_sum(sum, scratch, row_threads);
        total = sum[0];
    }
    /// ln sum e^x
    DEVICE A log_sum() const { return pivot() + logarithm(total); }
};

/// Column sums of the rows that a block works on, each thread adding to its own columns: in shared memory, one row of
/// sums for each row in flight, or straight in `out` where that has no room (and then there is one row in flight). Does
/// nothing if `out` is null.
template <class A, int N> struct ColumnSums {
    A *out, *shared, *mine;
    u32 flight;
    i64 packs;

    /// `out`: the block's row of results. `shared`: flight * width accumulators, or null.
    DEVICE ColumnSums(A *out, A *shared, Place at, u32 flight, u32 row_threads, i64 packs)
        : out(out), shared(shared), mine(shared ? shared + at.row * packs * N : out), flight(flight), packs(packs) {
        for (i32 p = at.column; out && p < packs; p += row_threads)
            UNROLL for (int i = 0; i < N; i++) mine[slot(p, i)] = 0;
    }
    /// In shared memory neighbouring threads have neighbouring slots: no two in one bank.
    DEVICE i64 slot(i32 pack, int i) const { return shared ? i * packs + pack : (i64)pack * N + i; }

    DEVICE void add(i32 pack, const A (&x)[N]) {
        if (out) UNROLL for (int i = 0; i < N; i++) mine[slot(pack, i)] += x[i];
    }
    /// Adds the rows in flight, in order, and writes the results. All threads of the block call.
    DEVICE void finish() {
        if (!out || !shared) return;
        sync_block();
        for (i32 p = threadIdx.x; p < packs; p += blockDim.x)
            UNROLL for (int i = 0; i < N; i++) {
                A sum = shared[slot(p, i)];
                for (u32 f = 1; f < flight; f++) sum += shared[f * packs * N + slot(p, i)];
                out[(i64)p * N + i] = sum;
            }
    }
};
