// out (+)= sum or maximum of x over some dimensions. X: f32, bf16 or f64; OUT: the destination's type; sums in f32 (f64
// for f64).
//
// The reduced entries of an output are cut into splits of `chunk` entries, by shape alone; one split writes the result,
// several write partial results that a further launch reduces in order.
//
//   reduce_rows     neighbours of x are reduced: the threads of a row stride over them. The bulk of a norm, of a loss.
//   reduce_columns  neighbours of x are kept: a thread has a pack of outputs and walks down; LINES threads share a split, whose
//                   sums are added in order. The gradient of a bias; partial weight gradients.
//
// Traffic: one read of x; partials are below 1% of it for long reductions.
#include "rows.cuh"
#include "strided.cuh"

typedef Accumulator<X>::type A;

DEVICE A minus_infinity() { return (A)-F32_INFINITY; }

/// What the grid's second dimension means: which entries a block reduces, and where its result goes.
struct Split {
    i64 chunk;      // entries of a split
    i64 out_stride; // distance of one split's results from the next one's
};

DEVICE i64 split_end(i64 start, Split split, const Strided<1> &reduced) {
    i64 count = (i64)reduced.count;
    return start + split.chunk < count ? start + split.chunk : count;
}

DEVICE void put(OUT *out, A value, bool accumulate) { *out = narrow<OUT>(accumulate ? widen(*out) + value : value); }

/// `kept`: out, x. `reduced`: x, in packs.
template <class F>
DEVICE void over_rows(OUT *out, const X *x, const Strided<2> &kept, const Strided<1> &reduced, Split split, u32 row_threads,
                      bool accumulate, A identity, A *scratch, F fold) {
    Place at = place(row_threads);
    i64 entry = (i64)blockIdx.x * (blockDim.x / row_threads) + at.row;
    bool live = entry < (i64)kept.count;
    u64 base[2] = {0, 0};
    if (live) offsets_of(kept, (u64)entry, base);
    i64 start = (i64)blockIdx.y * split.chunk, end = split_end(start, split, reduced);
    A result[1] = {identity};
    for (i64 r = start + at.column; live && r < end; r += row_threads) {
        u64 offset[1];
        offsets_of(reduced, (u64)r, offset);
        Pack<X, PACK> in = load_or_repeat<PACK>(x + base[1] + offset[0], reduced.repeats(0));
        UNROLL for (int i = 0; i < PACK; i++) result[0] = fold(result[0], widen(in[i]));
    }
    row_reduce(result, scratch, row_threads, fold);
    if (live && at.column == 0) put(out + base[0] + (i64)blockIdx.y * split.out_stride, result[0], accumulate);
}

KERNEL(reduce_rows, 512, OUT *out, const X *x, Strided<2> kept, Strided<1> reduced, Split split, u32 row_threads,
       i32 maximum, i32 accumulate) {
    SHARED(A, scratch, [ROW_SCRATCH]);
    if (maximum)
        over_rows(out, x, kept, reduced, split, row_threads, accumulate, minus_infinity(), scratch,
                  [](A a, A b) { return greater_or_nan(a, b); });
    else
        over_rows(out, x, kept, reduced, split, row_threads, accumulate, A(0), scratch, [](A a, A b) { return a + b; });
}

/// Outputs in packs across a block, and threads that share a split.
constexpr u32 COLUMNS = 32, LINES = 8;

/// `kept`: out, x, in packs. `reduced`: x.
template <class F>
DEVICE void over_columns(OUT *out, const X *x, const Strided<2> &kept, const Strided<1> &reduced, Split split, bool accumulate,
                         A identity, A (*partial)[COLUMNS][PACK], F fold) {
    u32 column = threadIdx.x % COLUMNS, line = threadIdx.x / COLUMNS;
    i64 entry = (i64)blockIdx.x * COLUMNS + column;
    bool live = entry < (i64)kept.count;
    u64 base[2] = {0, 0};
    if (live) offsets_of(kept, (u64)entry, base);
    i64 start = (i64)blockIdx.y * split.chunk, end = split_end(start, split, reduced);
    A result[PACK];
    UNROLL for (int i = 0; i < PACK; i++) result[i] = identity;
    for (i64 r = start + line; live && r < end; r += LINES) {
        u64 offset[1];
        offsets_of(reduced, (u64)r, offset);
        Pack<X, PACK> in = load_or_repeat<PACK>(x + base[1] + offset[0], kept.repeats(1));
        UNROLL for (int i = 0; i < PACK; i++) result[i] = fold(result[i], widen(in[i]));
    }
    UNROLL for (int i = 0; i < PACK; i++) partial[line][column][i] = result[i];
    sync_block();
    if (line > 0 || !live) return;
    for (u32 l = 1; l < LINES; l++)
        UNROLL for (int i = 0; i < PACK; i++) result[i] = fold(result[i], partial[l][column][i]);
    OUT *to = out + base[0] + (i64)blockIdx.y * split.out_stride;
    UNROLL for (int i = 0; i < PACK; i++) put(to + i, result[i], accumulate);
}

KERNEL(reduce_columns, 256, OUT *out, const X *x, Strided<2> kept, Strided<1> reduced, Split split, i32 maximum,
       i32 accumulate) {
    SHARED(A, partial, [LINES][COLUMNS][PACK]);
    if (maximum)
        over_columns(out, x, kept, reduced, split, accumulate, minus_infinity(), partial,
                     [](A a, A b) { return greater_or_nan(a, b); });
    else
        over_columns(out, x, kept, reduced, split, accumulate, A(0), partial, [](A a, A b) { return a + b; });
}
