// One AdamW update of flat storage (Loshchilov and Hutter, arXiv 1711.05101), with g = clip * gradient and t the step:
// m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, p -= lr (decay p), p -= lr / (1 - beta1^t) m / (sqrt(v) /
// sqrt(1 - beta2^t) + eps). X: f32 or f64. What changes between steps (lr, clip, t) is read from memory. A bf16 copy of
// f32 parameters is written along with them, rounded to nearest or stochastically.
//
// Traffic: parameters, gradients and both moments read, all but the gradients written: 28 bytes a parameter in f32, 30
// with the copy; about 15 FLOPs, and some 25 integer operations where rounding is stochastic.
#include "philox.cuh"
#include "rows.cuh"

struct Settings {
    f64 beta1, beta2, eps, weight_decay;
    i64 decay_len; // so many parameters decay, the rest do not
};

/// x^n by squaring, n >= 0.
DEVICE f64 power(f64 x, i32 n) {
    f64 result = 1;
    for (; n > 0; n /= 2, x *= x)
        if (n & 1) result *= x;
    return result;
}

struct Update {
    X clip, beta1, beta2, rest1, rest2, eps;
    X rate;       // lr / (1 - beta1^t)
    X correction; // 1 / sqrt(1 - beta2^t)
    X decay;      // lr * weight_decay

    DEVICE void apply(X &p, X gradient, X &m, X &v, bool decays) const {
        X g = gradient * clip;
        m = beta1 * m + rest1 * g;
        v = beta2 * v + rest2 * g * g;
        X kept = decays ? p - decay * p : p;
        p = kept - rate * m / (square_root(v) * correction + eps);
    }
};

/// The rounded copy of f32 parameters.
struct Copy {
    bf16 *rounded; // or null
    bool stochastic;
    u64 seed;
    u32 step;

    /// Elements of one block of random numbers, 16 bits each.
    static constexpr int BLOCK = 8;

    /// 16 of a block's bits; selected, since an index would put the words in memory.
    static DEVICE u32 half_word(const Words &random, int part) {
        u32 first = part < 2 ? random.word[0] : random.word[1], second = part < 6 ? random.word[2] : random.word[3];
        return (part < 4 ? first : second) >> 16 * (part % 2) & 0xffffu;
    }

    /// Parameters of f64 have no copy.
    template <int N> DEVICE void write(i64, const Pack<f64, N> &) const {}
    /// Rounds the N elements from `at` on, which are within one block.
    template <int N> DEVICE void write(i64 at, const Pack<f32, N> &x) const {
        if (!rounded) return;
        Pack<bf16, N> out;
        if (stochastic) {
            Words random = philox((u64)at / BLOCK, step, 1, seed);
            UNROLL for (int e = 0; e < N; e++) {
                u32 bits = bits_of(x[e]), low = half_word(random, (int)(at % BLOCK) + e);
                bool finite = (bits & 0x7f800000u) != 0x7f800000u;
                out[e] = finite ? bf16{(u16)((bits + low) >> 16)} : round_to<bf16>(x[e]);
            }
        } else {
            UNROLL for (int e = 0; e < N; e++) out[e] = round_to<bf16>(x[e]);
        }
        store_pack(rounded + at, out);
    }
};

KERNEL(adamw, 256, X *parameters, const X *gradients, X *first_moment, X *second_moment, const X *learning_rate,
       const X *clip, const i32 *step, Settings settings, bf16 *rounded, i32 stochastic, u64 seed, i64 count) {
    SHARED(X, corrected, [2]);
    f64 lr = *learning_rate;
    if (threadIdx.x == 0) {
        corrected[0] = (X)(lr / (1.0 - power(settings.beta1, *step)));
        corrected[1] = (X)(1.0 / sqrt(1.0 - power(settings.beta2, *step)));
    }
    sync_block();
    X beta1 = (X)settings.beta1, beta2 = (X)settings.beta2;
    Update update = {*clip,        beta1,        beta2,        X(1) - beta1, X(1) - beta2, (X)settings.eps,
                     corrected[0], corrected[1], (X)(lr * settings.weight_decay)};
    Copy copy = {rounded, stochastic != 0, seed, (u32)*step};
    i64 packs = count / PACK, step_width = (i64)gridDim.x * blockDim.x, thread = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    for (i64 i = thread; i < packs; i += step_width) {
        i64 at = i * PACK;
        Pack<X, PACK> p = load_pack<PACK>(parameters + at), g = load_pack<PACK>(gradients + at);
        Pack<X, PACK> m = load_pack<PACK>(first_moment + at), v = load_pack<PACK>(second_moment + at);
        UNROLL for (int e = 0; e < PACK; e++) update.apply(p[e], g[e], m[e], v[e], at + e < settings.decay_len);
        store_pack(parameters + at, p);
        copy.write(at, p);
        store_pack(first_moment + at, m);
        store_pack(second_moment + at, v);
    }
    // What does not fill a pack.
    i64 rest = packs * PACK + thread;
    if (rest < count) {
        update.apply(parameters[rest], gradients[rest], first_moment[rest], second_moment[rest], rest < settings.decay_len);
        copy.write(rest, load_pack<1>(parameters + rest));
    }
}
