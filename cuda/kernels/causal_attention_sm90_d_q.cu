// Causal attention backward on sm_90a, first pass: d_q, and what the second pass reads of each row. Formulas and who owns
// what: causal_attention.cuh; tiles, rings and products: causal_attention_sm90.cuh.
#include "causal_attention_sm90.cuh"

/// Shared memory: q [OWN], d_out [OWN], rings of k [VISIT] and v [VISIT], mbarriers.
struct Shared {
    bf16 *q, *d_out, *k, *v;
    u64 *own_full;
    Ring *k_ring, *v_ring;

    explicit DEVICE Shared(bf16 *begin) {
        q = begin, d_out = q + TILE<OWN>, k = d_out + TILE<OWN>, v = k + STAGES * TILE<VISIT>;
        own_full = reinterpret_cast<u64 *>(v + STAGES * TILE<VISIT>);
        k_ring = reinterpret_cast<Ring *>(own_full + 1), v_ring = k_ring + 1;
    }
};

/// One thread brings q and d_out once, and k and v tile by tile.
DEVICE void produce(Shared shared, const TensorMap &q, const TensorMap &k, const TensorMap &v, const TensorMap &d_out,
                    const Owned &own, int group, int tiles) {
    mbarrier_arrive_expect(shared.own_full, 2 * TILE_BYTES<OWN>);
    load_tile<OWN>(shared.q, q, own.first, own.head, own.batch, shared.own_full);
    load_tile<OWN>(shared.d_out, d_out, own.first, own.head, own.batch, shared.own_full);
    RingPlace<STAGES> place;
    for (int tile = 0; tile < tiles; tile++, place.advance()) {
        u64 *k_full = shared.k_ring->fill(place, TILE_BYTES<VISIT>);
        load_tile<VISIT>(shared.k + place.stage * TILE<VISIT>, k, tile * VISIT, group, own.batch, k_full);
        u64 *v_full = shared.v_ring->fill(place, TILE_BYTES<VISIT>);
        load_tile<VISIT>(shared.v + place.stage * TILE<VISIT>, v, tile * VISIT, group, own.batch, v_full);
    }
}

/// lse log2(e) and rowsum(d_out * out) of a lane's rows.
struct Statistics {
    RowValues lse2{{F32_INFINITY, F32_INFINITY}}, delta{{0.0f, 0.0f}};

    /// Reads them out of global memory, and writes them for the second pass: rows of VISIT, those beyond the queries
    /// with infinite lse2.
    DEVICE Statistics(f32 *lse2_out, f32 *delta_out, const bf16 *d_out, const bf16 *out, const f32 *lse,
                      const Owned &own, const Attention &a) {
        d_out = a.d_out.at(d_out, own.batch, own.head), out = a.out.at(out, own.batch, own.head);
        lse = a.lse.at(lse, own.batch, own.head);
        delta.each([&](f32 &sum, int half) {
            const int query = own.first + row_of(half * 2);
            if (query < a.queries) {
                const bf16 *x = out + query * a.out.position, *dx = d_out + query * a.d_out.position;
                for (int column = lane_index() % 4 * 8; column < a.width; column += 32) {
                    const Pack<bf16, 8> xs = load_once(x + column), dxs = load_pack<8>(dx + column);
                    UNROLL for (int i = 0; i < 8; i++) sum += to_f32(xs[i]) * to_f32(dxs[i]);
                }
                lse2[half] = lse[query] * (f32)LOG2_E;
            }
            sum = warp_sum<4>(sum);
            if (lane_index() % 4 != 0 || query >= statistics_rows(a)) return;
            const i64 row = statistics(a, own.batch, own.head) + query;
            lse2_out[row] = lse2[half], delta_out[row] = sum;
        });
    }
};

/// A warpgroup makes 64 rows of d_q: while the scores of a tile become ds, the ds of the tile before is multiplied with k.
DEVICE void consume(Shared shared, bf16 *d_q, bool accumulate, Statistics rows, const Owned &own, int tiles,
                    const Attention &a) {
    const int seen_by_all = own.first + warpgroup_row() + 1 + a.shift();
    const f32 scale = a.scale * (f32)LOG2_E;
    Fragments<VISIT> s, ds;
    Fragments<HEAD> dq;
    Weights ds_pairs;
    RingPlace<STAGES> place, before;
    auto start_scores = [&] {
        shared.k_ring->wait(place);
        start_transposed(s, shared.q, shared.k + place.stage * TILE<VISIT>);
        wgmma_commit();
        shared.v_ring->wait(place);
        start_transposed(ds, shared.d_out, shared.v + place.stage * TILE<VISIT>);
        wgmma_commit();
    };
    auto weigh = [&](int first_key) {
        s.each([&](f32 &x, int, int i) { x = fast_exp2(x * scale - rows.lse2[i / 2]); });
        if (first_key + VISIT > seen_by_all) { // on the diagonal
            s.each([&](f32 &x, int n, int i) {
                if (first_key + column_of(n, i) > own.first + row_of(i) + a.shift()) x = 0.0f;
            });
        }
    };
    auto differentiate = [&] {
        ds.each([&](f32 &x, int n, int i) { x = s.at[n * 4 + i] * (x - rows.delta[i / 2]); });
    };

    dq.clear();
    mbarrier_wait(shared.own_full, 0);
    wgmma_fence(s.at, ds.at);
    start_scores();
    wgmma_wait<1>(s.at);
    weigh(0);
    wgmma_wait<0>(ds.at);
    shared.v_ring->free(place);
    differentiate();
    pack(ds_pairs, ds);
    for (int tile = 1; tile < tiles; tile++) {
        before = place;
        place.advance();
        wgmma_fence(s.at, ds.at, dq.at, ds_pairs);
        start_scores();
        start(dq, ds_pairs, shared.k + before.stage * TILE<VISIT>);
        wgmma_commit();
        wgmma_wait<2>(s.at);
        weigh(tile * VISIT);
        wgmma_wait<1>(ds.at);
        shared.v_ring->free(place);
        differentiate();
        wgmma_wait<0>(dq.at);
        shared.k_ring->free(before);
        pack(ds_pairs, ds);
    }
    wgmma_fence(dq.at, ds_pairs);
    start(dq, ds_pairs, shared.k + place.stage * TILE<VISIT>);
    wgmma_commit();
    wgmma_wait<0>(dq.at);
    d_q = a.d_q.at(d_q, own.batch, own.head);
    store_tile(d_q, a.d_q.position, own.first, a.queries, a.width, accumulate, shared.q, dq, {{a.scale, a.scale}});
}

/// A block owns OWN queries and visits the tiles of keys that they see.
KERNEL_OCCUPANCY(causal_attention_d_q, THREADS, 1, bf16 *d_q, i32 accumulate, f32 *lse2, f32 *delta,
                 const GRID_CONSTANT TensorMap d_out_map, const GRID_CONSTANT TensorMap q,
                 const GRID_CONSTANT TensorMap k, const GRID_CONSTANT TensorMap v, const bf16 *d_out, const bf16 *out,
                 const f32 *lse, const GRID_CONSTANT Attention a) {
    DYNAMIC_SHARED(bf16, begin);
    const Shared shared(begin);
    const Owned own(a.queries, a.heads, true);
    const int seen = min(own.first + OWN, a.queries) + a.shift(), tiles = (seen + VISIT - 1) / VISIT;
    if (threadIdx.x == 0) {
        mbarrier_init(shared.own_full, 1);
        shared.k_ring->init(), shared.v_ring->init();
        fence_mbarrier_init();
    }
    sync_block();
    if (warpgroup_index() == CONSUMERS) {
        give_registers<PRODUCER_REGISTERS>();
        if (threadIdx.x == CONSUMERS * WARPGROUP) produce(shared, q, k, v, d_out_map, own, a.group_of(own.head), tiles);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        const Statistics rows(lse2, delta, d_out, out, lse, own, a);
        consume(shared, d_q, accumulate, rows, own, tiles, a);
    }
}
