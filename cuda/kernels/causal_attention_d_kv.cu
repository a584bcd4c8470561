// Causal attention backward on tensor cores, second pass: d_k and d_v. Formulas, shapes and tiles:
// causal_attention.cuh.
#include "causal_attention_mma.cuh"

/// A block owns OWN keys and visits, head by head of their group, the tiles of queries that see them. Scores are
/// transposed: keys are rows. While one stage of tiles is used the other is filled. Shared memory: k [OWN], v [OWN],
/// twice q [VISIT], d_out [VISIT] rows of PITCH, lse [VISIT], delta [VISIT].
KERNEL_OCCUPANCY(causal_attention_d_kv, THREADS, 1, bf16 *d_k, i32 accumulate_k, bf16 *d_v, i32 accumulate_v,
                 const bf16 *d_out, const bf16 *q, const bf16 *k, const bf16 *v, const f32 *lse, const f32 *delta,
                 Attention a) {
    constexpr int NUMBERS = VISIT * sizeof(f32) / sizeof(bf16), STAGE = 2 * VISIT * PITCH + 2 * NUMBERS; // in bf16
    DYNAMIC_SHARED(bf16, k_tile);
    bf16 *v_tile = k_tile + OWN * PITCH, *stages = v_tile + OWN * PITCH;
    const Owned own(a.keys, a.groups, false);
    const int per_group = a.heads / a.groups, last_key = min(own.first + OWN, a.keys) - 1;
    const int first_seer = max(own.first - a.shift(), 0) / VISIT * VISIT;
    const int tiles = (a.queries - first_seer + VISIT - 1) / VISIT, visits = tiles * per_group;
    auto load_stage = [&](int visit) {
        const int head = own.head * per_group + visit / tiles, first = first_seer + visit % tiles * VISIT;
        bf16 *q_tile = stages + visit % 2 * STAGE, *d_out_tile = q_tile + VISIT * PITCH;
        f32 *lse_tile = reinterpret_cast<f32 *>(d_out_tile + VISIT * PITCH), *delta_tile = lse_tile + VISIT;
        load_tile<VISIT>(q_tile, a.q.at(q, own.batch, head), a.q.position, first, a.queries, a);
        load_tile<VISIT>(d_out_tile, a.d_out.at(d_out, own.batch, head), a.d_out.position, first, a.queries, a);
        load_numbers(lse_tile, a.lse.at(lse, own.batch, head), first, a.queries);
        load_numbers(delta_tile, delta + a.delta(own.batch, head), first, a.queries);
        async_copy_commit();
    };

    load_tile<OWN>(k_tile, a.k.at(k, own.batch, own.head), a.k.position, own.first, a.keys, a);
    load_tile<OWN>(v_tile, a.v.at(v, own.batch, own.head), a.v.position, own.first, a.keys, a);
    load_stage(0);
    Fragments<HEAD> dk, dv;
    for (int visit = 0; visit < visits; visit++) {
        async_copy_wait<0>();
        sync_block(); // this stage has arrived, the other is free
        if (visit + 1 < visits) load_stage(visit + 1);
        const bf16 *q_tile = stages + visit % 2 * STAGE, *d_out_tile = q_tile + VISIT * PITCH;
        const f32 *lse_tile = reinterpret_cast<const f32 *>(d_out_tile + VISIT * PITCH), *delta_tile = lse_tile + VISIT;
        const int first_query = first_seer + visit % tiles * VISIT;
        const bool ragged = last_key > first_query + a.shift() || first_query + VISIT > a.queries;
        Fragments<VISIT> p, ds;
        multiply_transposed(p, k_tile, q_tile);
        p.each([&](f32 &x, int m, int n, int i) {
            const int key = own.first + row_of(m, i), query = first_query + column_of(n, i);
            x = fast_exp2(x * (a.scale * (f32)LOG2_E) - lse_tile[column_of(n, i)] * (f32)LOG2_E);
            if (ragged && (key > query + a.shift() || query >= a.queries)) x = 0.0f;
        });
        multiply_transposed(ds, v_tile, d_out_tile);
        multiply(dv, p, d_out_tile);
        ds.each([&](f32 &x, int m, int n, int i) { x = p.at[m][n][i] * (x - delta_tile[column_of(n, i)]); });
        multiply(dk, ds, q_tile);
    }
    d_k = a.d_k.at(d_k, own.batch, own.head), d_v = a.d_v.at(d_v, own.batch, own.head);
    store_tile(d_k, a.d_k.position, own.first, a.keys, a, accumulate_k, k_tile, dk, RowValues(a.scale));
    store_tile(d_v, a.d_v.position, own.first, a.keys, a, accumulate_v, v_tile, dv, RowValues(1.0f));
}
