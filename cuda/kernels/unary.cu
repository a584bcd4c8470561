// out = op(x), element by element over any strides; out may be x itself. X: f32, bf16 (computed in f32) or f64.
//
// Each thread takes packs of neighbours along the innermost dimension. Traffic: one read, one write of every element.
#include "rows.cuh"
#include "strided.cuh"

typedef Accumulator<X>::type A;

/// Order of the contract's `Unary`.
enum Function { NEG, EXP, LOG, SQRT, TANH, SIGMOID, SQUARE, RECIP, AFFINE };

DEVICE f32 hyperbolic_tangent(f32 x) { return tanhf(x); }
DEVICE f64 hyperbolic_tangent(f64 x) { return tanh(x); }

template <class F> DEVICE void apply(X *out, const X *x, const Strided<2> &walk, F function) {
    for_each_entry(walk, [&](const u64(&at)[2]) {
        Pack<X, PACK> in = load_or_repeat<PACK>(x + at[1], walk.repeats(1));
        A y[PACK];
        UNROLL for (int i = 0; i < PACK; i++) y[i] = function(widen(in[i]));
        put_pack(out + at[0], y, false);
    });
}

/// `walk`: out, x. `factor` and `summand` are those of AFFINE.
KERNEL(unary, 256, X *out, const X *x, Strided<2> walk, i32 function, f64 factor, f64 summand) {
    A mul = (A)factor, add = (A)summand;
    switch (function) {
    case NEG: return apply(out, x, walk, [](A v) { return -v; });
    case EXP: return apply(out, x, walk, [](A v) { return exponential<A>(v); });
    case LOG: return apply(out, x, walk, [](A v) { return logarithm(v); });
    case SQRT: return apply(out, x, walk, [](A v) { return square_root(v); });
    case TANH: return apply(out, x, walk, [](A v) { return hyperbolic_tangent(v); });
    case SIGMOID: return apply(out, x, walk, [](A v) { return sigmoid<A>(v); });
    case SQUARE: return apply(out, x, walk, [](A v) { return v * v; });
    case RECIP: return apply(out, x, walk, [](A v) { return A(1) / v; });
    case AFFINE: return apply(out, x, walk, [=](A v) { return v * mul + add; });
    }
}
