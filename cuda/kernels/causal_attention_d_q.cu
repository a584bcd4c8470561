// Causal attention backward on tensor cores, first pass: d_q, and delta for the second. Formulas, shapes and tiles:
// causal_attention.cuh.
#include "causal_attention_mma.cuh"

/// delta of this lane's rows: rowsum(d_out * out), d_out a tile [OWN, HEAD], out in global memory, read once.
DEVICE RowValues sum_delta(const bf16 *d_out_tile, const bf16 *out, const Owned &own, const Attention &a) {
    RowValues delta(0.0f);
    delta.each([&](f32 &sum, int m, int half) {
        const int row = row_of(m, half * 2);
        const bf16 *x = out + (own.first + row) * a.out.position, *dx = d_out_tile + row * PITCH;
        if (own.first + row < a.queries) {
            for (int column = lane_index() % 4 * 8; column < a.width; column += 32) {
                if (a.aligned) {
                    const Pack<bf16, 8> xs = load_once(x + column), dxs = load_pack<8>(dx + column);
                    UNROLL for (int i = 0; i < 8; i++) sum += to_f32(xs[i]) * to_f32(dxs[i]);
                } else {
                    for (int i = column; i < min(column + 8, a.width); i++) sum += to_f32(x[i]) * to_f32(dx[i]);
                }
            }
        }
        sum = warp_sum<4>(sum);
    });
    return delta;
}

/// A block owns OWN queries and visits the tiles of keys that they see. While one stage of tiles is used the other is
/// filled. Shared memory: q [OWN], d_out [OWN], twice k [VISIT], v [VISIT] rows of PITCH.
KERNEL_OCCUPANCY(causal_attention_d_q, THREADS, 1, bf16 *d_q, i32 accumulate, f32 *delta_out, const bf16 *d_out,
                 const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *out, const f32 *lse, Attention a) {
    constexpr int STAGE = 2 * VISIT * PITCH;
    DYNAMIC_SHARED(bf16, q_tile);
    bf16 *d_out_tile = q_tile + OWN * PITCH, *stages = d_out_tile + OWN * PITCH;
    const Owned own(a.queries, a.heads, true);
    const int seen = min(own.first + OWN, a.queries) + a.shift(), seen_by_all = own.first + 1 + a.shift();
    const int tiles = (seen + VISIT - 1) / VISIT;
    k = a.k.at(k, own.batch, a.group_of(own.head)), v = a.v.at(v, own.batch, a.group_of(own.head));
    auto load_stage = [&](int tile) {
        bf16 *k_tile = stages + tile % 2 * STAGE;
        load_tile<VISIT>(k_tile, k, a.k.position, tile * VISIT, a.keys, a);
        load_tile<VISIT>(k_tile + VISIT * PITCH, v, a.v.position, tile * VISIT, a.keys, a);
        async_copy_commit();
    };

    load_tile<OWN>(q_tile, a.q.at(q, own.batch, own.head), a.q.position, own.first, a.queries, a);
    load_tile<OWN>(d_out_tile, a.d_out.at(d_out, own.batch, own.head), a.d_out.position, own.first, a.queries, a);
    async_copy_commit();
    load_stage(0);
    async_copy_wait<1>();
    sync_block(); // q and d_out have arrived
    RowValues delta = sum_delta(d_out_tile, a.out.at(out, own.batch, own.head), own, a), lse2(0.0f);
    lse = a.lse.at(lse, own.batch, own.head), delta_out += a.delta(own.batch, own.head);
    lse2.each([&](f32 &x, int m, int half) {
        const int query = own.first + row_of(m, half * 2);
        if (query >= a.queries) return;
        x = lse[query] * (f32)LOG2_E;
        if (lane_index() % 4 == 0) delta_out[query] = delta[m][half];
    });

    Fragments<HEAD> dq;
    for (int tile = 0; tile < tiles; tile++) {
        async_copy_wait<0>();
        sync_block(); // this stage has arrived, the other is free
        if (tile + 1 < tiles) load_stage(tile + 1);
        const bf16 *k_tile = stages + tile % 2 * STAGE, *v_tile = k_tile + VISIT * PITCH;
        const int first_key = tile * VISIT;
        const bool on_diagonal = first_key + VISIT > seen_by_all;
        Fragments<VISIT> s, ds;
        multiply_transposed(s, q_tile, k_tile);
        multiply_transposed(ds, d_out_tile, v_tile);
        ds.each([&](f32 &x, int m, int n, int i) {
            const f32 p = fast_exp2(s.at[m][n][i] * (a.scale * (f32)LOG2_E) - lse2[m][i / 2]);
            x = p * (x - delta[m][i / 2]);
            if (on_diagonal && first_key + column_of(n, i) > own.first + row_of(m, i) + a.shift()) x = 0.0f;
        });
        multiply(dq, ds, k_tile);
    }
    d_q = a.d_q.at(d_q, own.batch, own.head);
    store_tile(d_q, a.d_q.position, own.first, a.queries, a, accumulate, q_tile, dq, RowValues(a.scale));
}
