// Causal attention forward on tensor cores: out and lse. Formulas, shapes and tiles: causal_attention.cuh.
#include "causal_attention_mma.cuh"

/// The running softmax of a warp's rows, in base 2 and with the scale inside the exponent: the largest score so far,
/// and this lane's part of the sum of 2^(scale log2(e) (score - top)).
struct Softmax {
    RowValues top{-F32_INFINITY}, sum{0.0f};

    /// Scores become weights under the new maxima; what was summed under the old ones is scaled to them.
    DEVICE void update(Fragments<VISIT> &s, Fragments<HEAD> &o, f32 scale) {
        RowValues correction(0.0f), scaled_top(0.0f);
        top.each([&](f32 &top, int m, int half) {
            f32 largest = top;
            UNROLL for (int n = 0; n < VISIT / 8; n++)
                UNROLL for (int i = half * 2; i < half * 2 + 2; i++) largest = max_nan(largest, s.at[m][n][i]);
            largest = warp_max<4>(largest);
            const f32 base = largest == -F32_INFINITY ? 0.0f : largest; // no finite score yet: weights are 0
            correction[m][half] = fast_exp2((top - base) * scale);
            scaled_top[m][half] = base * scale;
            top = largest;
        });
        sum.each([&](f32 &x, int m, int half) { x *= correction[m][half]; });
        o.each([&](f32 &x, int m, int, int i) { x *= correction[m][i / 2]; });
        s.each([&](f32 &x, int m, int, int i) {
            x = fast_exp2(x * scale - scaled_top[m][i / 2]);
            sum[m][i / 2] += x;
        });
    }
};

/// A block owns OWN queries and visits the tiles of keys that they see. There is one tile each of k and v: while scores
/// are made v is copied, while they are used the next k. Shared memory: q [OWN], k [VISIT], v [VISIT] rows of PITCH.
KERNEL_OCCUPANCY(causal_attention, THREADS, 1, bf16 *out, f32 *lse, const bf16 *q, const bf16 *k, const bf16 *v,
                 Attention a) {
    DYNAMIC_SHARED(bf16, q_tile);
    bf16 *k_tile = q_tile + OWN * PITCH, *v_tile = k_tile + VISIT * PITCH;
    const Owned own(a.queries, a.heads, true);
    const int seen = min(own.first + OWN, a.queries) + a.shift(), seen_by_all = own.first + 1 + a.shift();
    const int tiles = (seen + VISIT - 1) / VISIT;
    k = a.k.at(k, own.batch, a.group_of(own.head)), v = a.v.at(v, own.batch, a.group_of(own.head));

    load_tile<OWN>(q_tile, a.q.at(q, own.batch, own.head), a.q.position, own.first, a.queries, a);
    load_tile<VISIT>(k_tile, k, a.k.position, 0, a.keys, a);
    async_copy_commit();
    Fragments<HEAD> o;
    Softmax softmax;
    for (int tile = 0; tile < tiles; tile++) {
        const int first_key = tile * VISIT;
        async_copy_wait<0>();
        sync_block(); // k has arrived, v's tile is free
        load_tile<VISIT>(v_tile, v, a.v.position, first_key, a.keys, a);
        async_copy_commit();
        Fragments<VISIT> s;
        multiply_transposed(s, q_tile, k_tile);
        async_copy_wait<0>();
        sync_block(); // v has arrived, k's tile is free
        if (tile + 1 < tiles) {
            load_tile<VISIT>(k_tile, k, a.k.position, first_key + VISIT, a.keys, a);
            async_copy_commit();
        }
        if (first_key + VISIT > seen_by_all) { // on the diagonal
            s.each([&](f32 &x, int m, int n, int i) {
                if (first_key + column_of(n, i) > own.first + row_of(m, i) + a.shift()) x = -F32_INFINITY;
            });
        }
        softmax.update(s, o, a.scale * (f32)LOG2_E);
        multiply(o, s, v_tile);
    }

    lse = a.lse.at(lse, own.batch, own.head);
    softmax.sum.each([&](f32 &sum, int m, int half) {
        const int query = own.first + row_of(m, half * 2);
        sum = warp_sum<4>(sum);
        if (lane_index() % 4 == 0 && query < a.queries) lse[query] = softmax.top[m][half] * a.scale + logf(sum);
        sum = 1.0f / sum;
    });
    out = a.out.at(out, own.batch, own.head);
    store_tile(out, a.out.position, own.first, a.queries, a, false, q_tile, o, softmax.sum);
}
