// Causal attention forward on sm_90a: out and lse. Formulas and who owns what: causal_attention.cuh; tiles, rings and
// products: causal_attention_sm90.cuh.
#include "causal_attention_sm90.cuh"

/// The running softmax of a lane's two rows, in base 2 and with the scale inside the exponent: the largest score so far,
/// and this lane's part of the sum of 2^(scale log2(e) (score - top)).
struct Softmax {
    RowValues top{{-F32_INFINITY, -F32_INFINITY}}, sum{{0.0f, 0.0f}};

    /// Scores become weights under the new maxima; gives the factors that scale to them what was summed before.
    DEVICE RowValues update(Fragments<VISIT> &s, f32 scale) {
        RowValues correction, scaled_top;
        top.each([&](f32 &top, int half) {
            f32 largest = top;
            UNROLL for (int n = 0; n < VISIT / 8; n++)
                UNROLL for (int i = half * 2; i < half * 2 + 2; i++) largest = max_nan(largest, s.at[n * 4 + i]);
            largest = warp_max<4>(largest);
            const f32 base = largest == -F32_INFINITY ? 0.0f : largest; // no finite score yet: weights are 0
            correction[half] = fast_exp2((top - base) * scale);
            scaled_top[half] = base * scale;
            sum[half] *= correction[half];
            top = largest;
        });
        s.each([&](f32 &x, int, int i) {
            x = fast_exp2(x * scale - scaled_top[i / 2]);
            sum[i / 2] += x;
        });
        return correction;
    }
};

/// Shared memory: q [OWN], rings of k [VISIT] and v [VISIT], mbarriers.
struct Shared {
    bf16 *q, *k, *v;
    u64 *q_full;
    Ring *k_ring, *v_ring;

    explicit DEVICE Shared(bf16 *begin) {
        q = begin, k = q + TILE<OWN>, v = k + STAGES * TILE<VISIT>;
        q_full = reinterpret_cast<u64 *>(v + STAGES * TILE<VISIT>);
        k_ring = reinterpret_cast<Ring *>(q_full + 1), v_ring = k_ring + 1;
    }
};

/// One thread brings q once, and k and v tile by tile.
DEVICE void produce(Shared shared, const TensorMap &q, const TensorMap &k, const TensorMap &v, const Owned &own,
                    int group, int tiles) {
    mbarrier_arrive_expect(shared.q_full, TILE_BYTES<OWN>);
    load_tile<OWN>(shared.q, q, own.first, own.head, own.batch, shared.q_full);
    RingPlace<STAGES> place;
    for (int tile = 0; tile < tiles; tile++, place.advance()) {
        u64 *k_full = shared.k_ring->fill(place, TILE_BYTES<VISIT>);
        load_tile<VISIT>(shared.k + place.stage * TILE<VISIT>, k, tile * VISIT, group, own.batch, k_full);
        u64 *v_full = shared.v_ring->fill(place, TILE_BYTES<VISIT>);
        load_tile<VISIT>(shared.v + place.stage * TILE<VISIT>, v, tile * VISIT, group, own.batch, v_full);
    }
}

/// A warpgroup makes 64 rows of out: while the scores of a tile become weights, the weights of the tile before are
/// multiplied with v.
DEVICE void consume(Shared shared, bf16 *out, f32 *lse, const Owned &own, int tiles, const Attention &a) {
    const int seen_by_all = own.first + warpgroup_row() + 1 + a.shift();
    const f32 scale = a.scale * (f32)LOG2_E;
    Fragments<VISIT> s;
    Fragments<HEAD> o;
    Weights p;
    Softmax softmax;
    RingPlace<STAGES> k_place, v_place;
    auto weigh = [&](int first_key) {
        if (first_key + VISIT > seen_by_all) { // on the diagonal
            s.each([&](f32 &x, int n, int i) {
                if (first_key + column_of(n, i) > own.first + row_of(i) + a.shift()) x = -F32_INFINITY;
            });
        }
        return softmax.update(s, scale);
    };

    o.clear();
    mbarrier_wait(shared.q_full, 0);
    shared.k_ring->wait(k_place);
    wgmma_fence(s.at);
    start_transposed(s, shared.q, shared.k);
    wgmma_commit();
    wgmma_wait<0>(s.at);
    shared.k_ring->free(k_place);
    weigh(0);
    pack(p, s);
    for (int tile = 1; tile < tiles; tile++) {
        k_place.advance();
        shared.k_ring->wait(k_place);
        wgmma_fence(s.at, o.at, p);
        start_transposed(s, shared.q, shared.k + k_place.stage * TILE<VISIT>);
        wgmma_commit();
        shared.v_ring->wait(v_place);
        start(o, p, shared.v + v_place.stage * TILE<VISIT>);
        wgmma_commit();
        wgmma_wait<1>(s.at);
        shared.k_ring->free(k_place);
        RowValues correction = weigh(tile * VISIT);
        wgmma_wait<0>(o.at);
        shared.v_ring->free(v_place);
        v_place.advance();
        o.each([&](f32 &x, int, int i) { x *= correction[i / 2]; });
        pack(p, s);
    }
    shared.v_ring->wait(v_place);
    wgmma_fence(o.at, p);
    start(o, p, shared.v + v_place.stage * TILE<VISIT>);
    wgmma_commit();
    wgmma_wait<0>(o.at);

    lse = a.lse.at(lse, own.batch, own.head);
    softmax.sum.each([&](f32 &sum, int half) {
        const int query = own.first + row_of(half * 2);
        sum = warp_sum<4>(sum);
        if (lane_index() % 4 == 0 && query < a.queries) lse[query] = softmax.top[half] * a.scale + logf(sum);
        sum = 1.0f / sum;
    });
    out = a.out.at(out, own.batch, own.head);
    store_tile(out, a.out.position, own.first, a.queries, a.width, false, shared.q, o, softmax.sum);
}

/// A block owns OWN queries and visits the tiles of keys that they see.
KERNEL_OCCUPANCY(causal_attention, THREADS, 1, bf16 *out, f32 *lse, const GRID_CONSTANT TensorMap q,
                 const GRID_CONSTANT TensorMap k, const GRID_CONSTANT TensorMap v, const GRID_CONSTANT Attention a) {
    DYNAMIC_SHARED(bf16, begin);
    const Shared shared(begin);
    const Owned own(a.queries, a.heads, true);
    const int seen = min(own.first + OWN, a.queries) + a.shift(), tiles = (seen + VISIT - 1) / VISIT;
    if (threadIdx.x == 0) {
        mbarrier_init(shared.q_full, 1);
        shared.k_ring->init(), shared.v_ring->init();
        fence_mbarrier_init();
    }
    sync_block();
    if (warpgroup_index() == CONSUMERS) {
        give_registers<PRODUCER_REGISTERS>();
        if (threadIdx.x == CONSUMERS * WARPGROUP) produce(shared, q, k, v, own, a.group_of(own.head), tiles);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        consume(shared, out, lse, own, tiles, a);
    }
}
