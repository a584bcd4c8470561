// Causal attention, what all its kernels share: formulas, sizes, and which rows a block owns. After Dao, arXiv
// 2307.08691.
//
//   out = softmax(scale q k^T + mask) v,   lse = log-sum-exp of each masked row of scale q k^T
//   p = e^(scale q k^T - lse),   delta = rowsum(d_out * out),   ds = p (d_out v^T - delta)
//   d_q = scale ds k,   d_k = scale ds^T q,   d_v = p^T d_out
//
// q, out, d_out [B, T, H, D]; k, v [B, S, G, D]; lse, delta [B, H, T]. Query head h reads key head h / (H / G), query t
// the keys 0 ..= t + S - T. A block owns a tile of OWN rows of one head (queries; for d_k and d_v keys) and visits
// tiles of VISIT rows of the other side, in order. Tiles above the diagonal are skipped, and only those on it are
// masked.
//
// Products of OWN x VISIT x D for a visited tile: forward 2 (q k^T, p v); backward 7, of which 3 for d_q (q k^T, d_out
// v^T, ds k) and 4 for d_k and d_v (k q^T, v d_out^T, p^T d_out, ds^T q). One pass for all three would take 5, but its
// d_q is a sum over blocks, which takes atomics, or blocks that wait for blocks; here each sum has one owner and one
// order, and repeats to the bit.
//
// Compiled with HEAD, D rounded up to 16 (columns from D on are zeros in shared memory and never stored), OWN and
// VISIT. Kernels ask for one block on a multiprocessor at least, so that the compiler may use all registers.
#pragma once
#include "prelude.cuh"

constexpr f64 LOG2_E = 1.44269504088896341, LN_2 = 0.693147180559945309;

/// Where the rows of a tensor lie, in elements; `Strides` in src/ops/causal_attention.
struct Strides {
    i64 batch, position, head;
    template <class T> DEVICE T *at(T *base, int b, int h) const { return base + b * batch + h * head; }
};

/// What all passes are told of sizes and places; `Attention` in src/ops/causal_attention.
struct Attention {
    i32 queries, keys, heads, groups, width;
    i32 aligned; // whether every row of every tensor starts at a multiple of 16 bytes and fills a multiple of them
    f32 scale;
    i32 unused;
    f64 exact_scale; // before it was rounded
    Strides q, k, v, out, lse, d_out, d_q, d_k, d_v;

    /// A query sees the keys up to its own position plus this.
    DEVICE int shift() const { return keys - queries; }
    DEVICE int group_of(int head) const { return head / (heads / groups); }
    /// Where a head's delta starts, which is contiguous.
    DEVICE i64 delta(int b, int h) const { return ((i64)b * heads + h) * queries; }
};

/// Which tile of which head of which batch entry this block owns. The last tiles of queries see the most and come
/// first.
struct Owned {
    int first, head, batch;
    DEVICE Owned(int rows, int heads, bool last_first) {
        const u32 tiles = (rows + OWN - 1) / OWN, tile = blockIdx.x % tiles, index = blockIdx.x / tiles;
        first = (int)(last_first ? tiles - 1 - tile : tile) * OWN;
        head = (int)(index % heads);
        batch = (int)(index / heads);
    }
};
