// Walking over several tensors of one shape and any strides, element by element or in packs of neighbours (see
// `Strided`).
#pragma once
#include "prelude.cuh"

/// Below this many entries, 32-bit divisions find an entry's place.
constexpr u64 SMALL = 1ull << 31;

/// Element offsets of the entry with row-major number `index`.
template <int N> DEVICE void offsets_of(const Strided<N> &walk, u64 index, u64 (&offsets)[N]) {
    if (walk.count < SMALL) walk.locate((u32)index, offsets);
    else walk.locate(index, offsets);
}

template <class Index, int N, class F> DEVICE void for_each_entry_as(const Strided<N> &walk, F body) {
    Index count = (Index)walk.count, step = (Index)gridDim.x * blockDim.x;
    for (Index i = (Index)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        u64 offsets[N];
        walk.locate(i, offsets);
        body(offsets);
    }
}

/// Calls `body(offsets)` once for every entry, over the whole grid.
template <int N, class F> DEVICE void for_each_entry(const Strided<N> &walk, F body) {
    if (walk.count < SMALL) for_each_entry_as<u32>(walk, body);
    else for_each_entry_as<u64>(walk, body);
}

/// A pack at `from`, or one element repeated.
template <int N, class T> DEVICE Pack<T, N> load_or_repeat(const T *from, bool repeat) {
    if (N == 1 || !repeat) return load_pack<N>(from);
    Pack<T, N> out;
    T x = *from;
    UNROLL for (int i = 0; i < N; i++) out[i] = x;
    return out;
}
