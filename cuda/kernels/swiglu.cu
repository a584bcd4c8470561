// SwiGLU (Shazeer, arXiv 2002.05202) of a joined projection: out = gate s up with s = 1 / (1 + e^-gate); x [rows, 2
// packs] holds gate, then up, out [rows, packs]. Its gradient: d_gate (+)= d_out up s (1 + gate (1 - s)), d_up (+)=
// d_out gate s. X: f32, bf16 or f64.
//
// Traffic, in elements of out: forward two reads and one write, backward three reads and two writes. About 10 and 20
// FLOPs.
#include "rows.cuh"

typedef Accumulator<X>::type A;

KERNEL(swiglu, 256, X *out, i64 out_stride, const X *x, i64 x_stride, i64 rows, i64 packs) {
    for_each_pack(rows, packs, [&](i64 n, i64 p) {
        const X *from = x + n * x_stride + p * PACK;
        Pack<X, PACK> gate = load_pack<PACK>(from), up = load_pack<PACK>(from + packs * PACK);
        A y[PACK];
        UNROLL for (int i = 0; i < PACK; i++) y[i] = widen(gate[i]) * sigmoid<X>(widen(gate[i])) * widen(up[i]);
        put_pack(out + n * out_stride + p * PACK, y, false);
    });
}

KERNEL(swiglu_backward, 256, X *d_x, i64 d_x_stride, i32 accumulate, const X *d_out, i64 d_out_stride, const X *x,
       i64 x_stride, i64 rows, i64 packs) {
    for_each_pack(rows, packs, [&](i64 n, i64 p) {
        const X *from = x + n * x_stride + p * PACK;
        Pack<X, PACK> gate = load_pack<PACK>(from), up = load_pack<PACK>(from + packs * PACK);
        Pack<X, PACK> d = load_pack<PACK>(d_out + n * d_out_stride + p * PACK);
        A d_gate[PACK], d_up[PACK];
        UNROLL for (int i = 0; i < PACK; i++) {
            A g = widen(gate[i]), s = sigmoid<X>(g);
            d_gate[i] = widen(d[i]) * widen(up[i]) * s * (A(1) + g * (A(1) - s));
            d_up[i] = widen(d[i]) * g * s;
        }
        X *to = d_x + n * d_x_stride + p * PACK;
        put_pack(to, d_gate, accumulate);
        put_pack(to + packs * PACK, d_up, accumulate);
    });
}
