// out = x, converted from FROM to TO, any strides on both sides. Elements that move unchanged come as unsigned integers
// of their size.
//
// Floats round to nearest even; floats to integers truncate toward zero and saturate, NaN becomes 0; i64 to i32
// saturates.
//
// `copy` takes packs of neighbours along the innermost dimension of out. `copy_transposed` is for an x whose neighbours
// lie along another dimension: a tile goes through shared memory, so that both sides move whole lines. Traffic of both:
// one read, one write.
#include "strided.cuh"

DEVICE f64 to_f64(f64 x) { return x; }
DEVICE f64 to_f64(f32 x) { return x; }
DEVICE f64 to_f64(bf16 x) { return to_f32(x); }
DEVICE f64 to_f64(f16 x) { return to_f32(x); }
DEVICE f64 to_f64(i32 x) { return x; }
DEVICE f64 to_f64(i64 x) { return (f64)x; }

/// An f64 in the type T.
template <class T> struct FromF64 {
    static DEVICE T of(f64 x) { return round_to<T>(f64_to_f32_odd(x)); }
};
template <> struct FromF64<f64> {
    static DEVICE f64 of(f64 x) { return x; }
};
template <> struct FromF64<f32> {
    static DEVICE f32 of(f64 x) { return (f32)x; }
};
template <> struct FromF64<i32> {
    static DEVICE i32 of(f64 x) {
        if (x != x) return 0;
        return x >= 2147483647.0 ? 2147483647 : x <= -2147483648.0 ? -2147483647 - 1 : (i32)x;
    }
};
template <> struct FromF64<i64> {
    static DEVICE i64 of(f64 x) {
        if (x != x) return 0;
        i64 most = 0x7fffffffffffffffll;
        return x >= 9223372036854775808.0 ? most : x <= -9223372036854775808.0 ? -most - 1 : (i64)x;
    }
};

/// Conversions that do not go through f64.
template <class T> DEVICE T converted(T x, T *) { return x; }
DEVICE bf16 converted(f32 x, bf16 *) { return round_to<bf16>(x); }
DEVICE f16 converted(f32 x, f16 *) { return round_to<f16>(x); }
DEVICE f32 converted(bf16 x, f32 *) { return to_f32(x); }
DEVICE f32 converted(f16 x, f32 *) { return to_f32(x); }
DEVICE i64 converted(i32 x, i64 *) { return x; }
DEVICE i32 converted(i64 x, i32 *) {
    return x > 2147483647ll ? 2147483647 : x < -2147483648ll ? -2147483647 - 1 : (i32)x;
}
template <class T, class S> DEVICE T converted(S x, T *) { return FromF64<T>::of(to_f64(x)); }

DEVICE TO convert(FROM x) { return converted(x, (TO *)nullptr); }

/// `walk`: out, x.
KERNEL(copy, 256, TO *out, const FROM *x, Strided<2> walk) {
    for_each_entry(walk, [&](const u64(&at)[2]) {
        Pack<FROM, PACK> in = load_or_repeat<PACK>(x + at[1], walk.repeats(1));
        Pack<TO, PACK> converted;
        UNROLL for (int i = 0; i < PACK; i++) converted[i] = convert(in[i]);
        store_pack(out + at[0], converted);
    });
}

constexpr u32 TILE = 32;

/// out[b, i, j] = x[b, i, j] where neighbours of out lie along j, those of x along i. A block of TILE x 8 threads moves
/// a tile of TILE x TILE; blockIdx.x counts tiles, those along j fastest, then along i, then b. `walk`: out, x over the
/// other dimensions, b; [i, j] is `rows` x `columns`.
KERNEL(copy_transposed, 256, TO *out, const FROM *x, Strided<2> walk, i64 rows, i64 columns, i64 out_stride,
       i64 x_stride) {
    SHARED(TO, tile, [TILE][TILE + 1]); // the odd width spreads a column over the banks
    u64 across = (u64)(columns + TILE - 1) / TILE, down = (u64)(rows + TILE - 1) / TILE;
    u64 j = blockIdx.x % across, i = blockIdx.x / across % down;
    u64 at[2];
    offsets_of(walk, blockIdx.x / (across * down), at);
    i64 row = (i64)i * TILE, column = (i64)j * TILE;
    u32 lane = threadIdx.x % TILE, line = threadIdx.x / TILE;
    for (u32 l = line; l < TILE; l += 8)
        if (column + l < columns && row + lane < rows) tile[lane][l] = convert(x[at[1] + row + lane + (column + l) * x_stride]);
    sync_block();
    for (u32 l = line; l < TILE; l += 8)
        if (row + l < rows && column + lane < columns) out[at[0] + (row + l) * out_stride + column + lane] = tile[l][lane];
}
