// Walking over several tensors of one shape and any strides: shape and strides are passed by value.
#pragma once
#include "prelude.cuh"

constexpr int MAX_RANK = 8;

/// A shape of `count` entries and, for each of N tensors, the strides in elements; the last dimension is the innermost. In packs,
/// that dimension counts packs, and a tensor's stride in it is the pack, or 0 where one element is repeated.
template <int N> struct Walk {
    i64 count;
    i64 rank;
    i64 size[MAX_RANK];
    i64 stride[N][MAX_RANK];

    /// Whether tensor `n` repeats one element along the innermost dimension.
    DEVICE bool repeats(int n) const { return rank > 0 && stride[n][rank - 1] == 0; }
};

/// Element offsets of the entry with row-major number `index`.
template <class Index, int N> DEVICE void offsets_of(const Walk<N> &walk, Index index, i64 (&offset)[N]) {
    UNROLL for (int n = 0; n < N; n++) offset[n] = 0;
    for (int d = (int)walk.rank - 1; d > 0; d--) {
        Index size = (Index)walk.size[d], outer = index / size;
        UNROLL for (int n = 0; n < N; n++) offset[n] += (i64)(index - outer * size) * walk.stride[n][d];
        index = outer;
    }
    if (walk.rank > 0) UNROLL for (int n = 0; n < N; n++) offset[n] += (i64)index * walk.stride[n][0];
}

template <class Index, int N, class F> DEVICE void for_each_entry_as(const Walk<N> &walk, F body) {
    Index count = (Index)walk.count, step = (Index)gridDim.x * blockDim.x;
    for (Index i = (Index)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        i64 offset[N];
        offsets_of<Index>(walk, i, offset);
        body(offset);
    }
}

/// Calls `body(offsets)` once for every entry, over the whole grid.
template <int N, class F> DEVICE void for_each_entry(const Walk<N> &walk, F body) {
    // Below 2^31 divisions take 32-bit instructions.
    if (walk.count < (i64)1 << 31) for_each_entry_as<u32>(walk, body);
    else for_each_entry_as<u64>(walk, body);
}

/// A pack at `from`, or one element repeated.
template <int PACK, class T> DEVICE Pack<T, PACK> load_or_repeat(const T *from, bool repeat) {
    if (PACK == 1 || !repeat) return load_pack<PACK>(from);
    Pack<T, PACK> out;
    T x = *from;
    UNROLL for (int i = 0; i < PACK; i++) out[i] = x;
    return out;
}
