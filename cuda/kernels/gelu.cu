// GELU, tanh form (Hendrycks and Gimpel, arXiv 1606.08415): x/2 (1 + tanh u) = x s, with u = sqrt(2/pi) (x + 0.044715
// x^3) and s = 1 / (1 + e^-2u), which keeps its digits where 1 + tanh u loses them. Its gradient: d_x (+)= d_out (s + 2
// x s (1 - s) u'). All matrices [rows, packs], rows with strides of their own. X: f32, bf16 or f64.
//
// Traffic: forward one read and one write of every element, backward two reads and one write. About 15 and 25 FLOPs an
// element.
#include "rows.cuh"

typedef Accumulator<X>::type A;

constexpr f64 ROOT = 0.7978845608028654; // sqrt(2 / pi)
constexpr f64 CUBE = 0.044715;

DEVICE A weight_of(A x) { return sigmoid<X>(A(2 * ROOT) * x * (A(CUBE) * x * x + A(1))); }

KERNEL(gelu, 256, X *out, i64 out_stride, const X *x, i64 x_stride, i64 rows, i64 packs) {
    for_each_pack(rows, packs, [&](i64 n, i64 p) {
        Pack<X, PACK> in = load_pack<PACK>(x + n * x_stride + p * PACK);
        A y[PACK];
        UNROLL for (int i = 0; i < PACK; i++) y[i] = widen(in[i]) * weight_of(widen(in[i]));
        put_pack(out + n * out_stride + p * PACK, y, false);
    });
}

KERNEL(gelu_backward, 256, X *d_x, i64 d_x_stride, i32 accumulate, const X *d_out, i64 d_out_stride, const X *x,
       i64 x_stride, i64 rows, i64 packs) {
    for_each_pack(rows, packs, [&](i64 n, i64 p) {
        Pack<X, PACK> in = load_pack<PACK>(x + n * x_stride + p * PACK);
        Pack<X, PACK> d = load_pack<PACK>(d_out + n * d_out_stride + p * PACK);
        A y[PACK];
        UNROLL for (int i = 0; i < PACK; i++) {
            A v = widen(in[i]), s = weight_of(v), slope = A(2 * ROOT) * (A(3 * CUBE) * v * v + A(1));
            y[i] = widen(d[i]) * (s + v * s * (A(1) - s) * slope);
        }
        put_pack(d_x + n * d_x_stride + p * PACK, y, accumulate);
    });
}
