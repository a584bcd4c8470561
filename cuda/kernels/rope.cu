// Rotary embedding (Su et al., arXiv 2104.09864), halves paired as transformers does: for i < D/2, out_i = x_i cos -
// x_(i+D/2) sin, out_(i+D/2) = x_(i+D/2) cos + x_i sin; the other way with `inverse`, which is also the gradient. x,
// out [B, T, H, D], D in a row, other strides free; cos, sin [T, D/2] of type TABLE. out may be x. X: f32, bf16 or f64.
//
// A thread has a pack of the first half and its partner of the second. Traffic: one read and one write of every
// element; the tables stay in cache. 3 FLOPs an element.
#include "rows.cuh"

typedef Accumulator<X>::type A;

/// Sizes T, H and the packs of D/2; strides of B, T and H.
struct Heads {
    i64 positions, heads, packs;
};
struct Strides {
    i64 batch, position, head;
    DEVICE i64 of(i64 b, i64 t, i64 h) const { return b * batch + t * position + h * head; }
};

template <class Index>
DEVICE void rotate(X *out, Strides to, const X *x, Strides from, const TABLE *cos, const TABLE *sin, i64 batches, Heads size,
                   bool inverse) {
    Index count = (Index)(batches * size.positions * size.heads * size.packs), step = (Index)gridDim.x * blockDim.x;
    Index packs = (Index)size.packs, heads = (Index)size.heads, positions = (Index)size.positions;
    i64 half = size.packs * PACK;
    for (Index i = (Index)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        Index head = i / packs, position = head / heads, batch = position / positions;
        i64 p = (i64)(i - head * packs), h = (i64)(head - position * heads), t = (i64)(position - batch * positions);
        const X *in = x + from.of((i64)batch, t, h) + p * PACK;
        Pack<X, PACK> first = load_pack<PACK>(in), second = load_pack<PACK>(in + half);
        A c[PACK], s[PACK], low[PACK], high[PACK];
        get_pack(cos + t * half + p * PACK, c);
        get_pack(sin + t * half + p * PACK, s);
        UNROLL for (int k = 0; k < PACK; k++) {
            A a = widen(first[k]), b = widen(second[k]), turn = inverse ? -s[k] : s[k];
            low[k] = a * c[k] - b * turn;
            high[k] = b * c[k] + a * turn;
        }
        X *to_row = out + to.of((i64)batch, t, h) + p * PACK;
        put_pack(to_row, low, false);
        put_pack(to_row + half, high, false);
    }
}

KERNEL(rope, 256, X *out, Strides to, const X *x, Strides from, const TABLE *cos, const TABLE *sin, i64 batches,
       Heads size, i32 inverse) {
    // Below 2^31 the divisions take 32-bit instructions.
    if (batches * size.positions * size.heads * size.packs < (i64)1 << 31)
        rotate<u32>(out, to, x, from, cos, sin, batches, size, inverse);
    else
        rotate<u64>(out, to, x, from, cos, sin, batches, size, inverse);
}
