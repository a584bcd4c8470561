// out (+)= op(a, b), element by element over any strides; an argument that broadcasts has stride 0 there. out may be a
// or b itself. X: f32, bf16 (computed in f32) or f64.
//
// Each thread takes packs of neighbours along the innermost dimension. Traffic: two reads and one write of every
// element (one more read to accumulate), less where an argument repeats.
#include "rows.cuh"
#include "strided.cuh"

typedef Accumulator<X>::type A;

/// Order of the contract's `Binary`.
enum Function { ADD, SUB, MUL, DIV, MAX, MIN };

template <class F> DEVICE void apply(X *out, const X *a, const X *b, const Strided<3> &walk, bool accumulate, F function) {
    for_each_entry(walk, [&](const u64(&at)[3]) {
        Pack<X, PACK> left = load_or_repeat<PACK>(a + at[1], walk.repeats(1));
        Pack<X, PACK> right = load_or_repeat<PACK>(b + at[2], walk.repeats(2));
        A y[PACK];
        UNROLL for (int i = 0; i < PACK; i++) y[i] = function(widen(left[i]), widen(right[i]));
        put_pack(out + at[0], y, accumulate);
    });
}

/// `walk`: out, a, b.
KERNEL(binary, 256, X *out, const X *a, const X *b, Strided<3> walk, i32 function, i32 accumulate) {
    switch (function) {
    case ADD: return apply(out, a, b, walk, accumulate, [](A l, A r) { return l + r; });
    case SUB: return apply(out, a, b, walk, accumulate, [](A l, A r) { return l - r; });
    case MUL: return apply(out, a, b, walk, accumulate, [](A l, A r) { return l * r; });
    case DIV: return apply(out, a, b, walk, accumulate, [](A l, A r) { return l / r; });
    case MAX: return apply(out, a, b, walk, accumulate, [](A l, A r) { return greater_or_nan(l, r); });
    case MIN: return apply(out, a, b, walk, accumulate, [](A l, A r) { return -greater_or_nan(-l, -r); });
    }
}
