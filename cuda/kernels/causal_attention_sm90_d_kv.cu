// Causal attention backward on sm_90a, second pass: d_k and d_v. Formulas and who owns what: causal_attention.cuh; tiles,
// rings and products: causal_attention_sm90.cuh.
#include "causal_attention_sm90.cuh"

/// Bytes of a stage: q and d_out [VISIT], lse2 and delta [VISIT].
constexpr int NUMBERS = VISIT * sizeof(f32) / sizeof(bf16), STAGE = 2 * TILE<VISIT> + 512;
static_assert(2 * NUMBERS <= 512, "stages start at multiples of 1024 bytes");

/// Shared memory: k [OWN], v [OWN], a ring of stages, mbarriers.
struct Shared {
    bf16 *k, *v, *stages;
    u64 *own_full;
    Ring *ring;

    explicit DEVICE Shared(bf16 *begin) {
        k = begin, v = k + TILE<OWN>, stages = v + TILE<OWN>;
        own_full = reinterpret_cast<u64 *>(stages + STAGES * STAGE);
        ring = reinterpret_cast<Ring *>(own_full + 1);
    }
    DEVICE bf16 *q(int stage) const { return stages + stage * STAGE; }
    DEVICE bf16 *d_out(int stage) const { return q(stage) + TILE<VISIT>; }
    DEVICE f32 *lse2(int stage) const { return reinterpret_cast<f32 *>(d_out(stage) + TILE<VISIT>); }
    DEVICE f32 *delta(int stage) const { return lse2(stage) + VISIT; }
};

/// The visits of a block: head by head of its group, the tiles of queries that see its keys.
struct Visits {
    int first_seer, tiles, per_group, count;
    DEVICE Visits(const Owned &own, const Attention &a) {
        first_seer = max(own.first - a.shift(), 0) / VISIT * VISIT;
        tiles = (a.queries - first_seer + VISIT - 1) / VISIT;
        per_group = a.heads / a.groups, count = tiles * per_group;
    }
    DEVICE int head(int visit, const Owned &own) const { return own.head * per_group + visit / tiles; }
    DEVICE int first_query(int visit) const { return first_seer + visit % tiles * VISIT; }
};

/// One thread brings k and v once, and what each visit takes.
DEVICE void produce(Shared shared, const TensorMap &q, const TensorMap &k, const TensorMap &v, const TensorMap &d_out,
                    const f32 *lse2, const f32 *delta, const Owned &own, const Visits &visits, const Attention &a) {
    mbarrier_arrive_expect(shared.own_full, 2 * TILE_BYTES<OWN>);
    load_tile<OWN>(shared.k, k, own.first, own.head, own.batch, shared.own_full);
    load_tile<OWN>(shared.v, v, own.first, own.head, own.batch, shared.own_full);
    RingPlace<STAGES> place;
    for (int visit = 0; visit < visits.count; visit++, place.advance()) {
        const int head = visits.head(visit, own), first = visits.first_query(visit), stage = place.stage;
        const i64 row = statistics(a, own.batch, head) + first;
        u64 *full = shared.ring->fill(place, 2 * TILE_BYTES<VISIT> + 2 * VISIT * sizeof(f32));
        load_tile<VISIT>(shared.q(stage), q, first, head, own.batch, full);
        load_tile<VISIT>(shared.d_out(stage), d_out, first, head, own.batch, full);
        bulk_load(shared.lse2(stage), lse2 + row, VISIT * sizeof(f32), full);
        bulk_load(shared.delta(stage), delta + row, VISIT * sizeof(f32), full);
    }
}

/// A warpgroup makes 64 rows of d_k and d_v. Scores are transposed: keys are rows. Weights p are made while v d_out^T
/// runs, ds while p^T d_out does; the other warpgroups' arithmetic fills ds^T q.
DEVICE void consume(Shared shared, bf16 *d_k, bool accumulate_k, bf16 *d_v, bool accumulate_v, const Owned &own,
                    const Visits &visits, const Attention &a) {
    const int last_key = own.first + warpgroup_row() + 63;
    const f32 scale = a.scale * (f32)LOG2_E;
    Fragments<VISIT> s, ds;
    Fragments<HEAD> dk, dv;
    Weights p_pairs, ds_pairs;
    RingPlace<STAGES> place;
    dk.clear(), dv.clear();
    mbarrier_wait(shared.own_full, 0);
    for (int visit = 0; visit < visits.count; visit++) {
        const int stage = place.stage, first_query = visits.first_query(visit);
        const f32 *lse2 = shared.lse2(stage), *delta = shared.delta(stage);
        shared.ring->wait(place);
        wgmma_fence(s.at, ds.at);
        start_transposed(s, shared.k, shared.q(stage));
        wgmma_commit();
        start_transposed(ds, shared.v, shared.d_out(stage));
        wgmma_commit();
        wgmma_wait<1>(s.at);
        s.each([&](f32 &x, int n, int i) { x = fast_exp2(x * scale - lse2[column_of(n, i)]); });
        if (last_key > first_query + a.shift()) { // on the diagonal
            s.each([&](f32 &x, int n, int i) {
                if (own.first + row_of(i) > first_query + column_of(n, i) + a.shift()) x = 0.0f;
            });
        }
        pack(p_pairs, s);
        wgmma_fence(dv.at, p_pairs);
        start(dv, p_pairs, shared.d_out(stage));
        wgmma_commit();
        wgmma_wait<1>(ds.at);
        ds.each([&](f32 &x, int n, int i) { x = s.at[n * 4 + i] * (x - delta[column_of(n, i)]); });
        pack(ds_pairs, ds);
        wgmma_fence(dk.at, ds_pairs);
        start(dk, ds_pairs, shared.q(stage));
        wgmma_commit();
        wgmma_wait<0>(dk.at, dv.at);
        shared.ring->free(place);
        place.advance();
    }
    d_k = a.d_k.at(d_k, own.batch, own.head), d_v = a.d_v.at(d_v, own.batch, own.head);
    store_tile(d_k, a.d_k.position, own.first, a.keys, a.width, accumulate_k, shared.k, dk, {{a.scale, a.scale}});
    store_tile(d_v, a.d_v.position, own.first, a.keys, a.width, accumulate_v, shared.v, dv, {{1.0f, 1.0f}});
}

/// A block owns OWN keys and visits, head by head of their group, the tiles of queries that see them. lse2 and delta:
/// written by the first pass, with lse2 infinite beyond the queries, so that weights are 0 there.
KERNEL_OCCUPANCY(causal_attention_d_kv, THREADS, 1, bf16 *d_k, i32 accumulate_k, bf16 *d_v, i32 accumulate_v,
                 const GRID_CONSTANT TensorMap d_out, const GRID_CONSTANT TensorMap q, const GRID_CONSTANT TensorMap k,
                 const GRID_CONSTANT TensorMap v, const f32 *lse2, const f32 *delta, const GRID_CONSTANT Attention a) {
    DYNAMIC_SHARED(bf16, begin);
    const Shared shared(begin);
    const Owned own(a.keys, a.groups, false);
    const Visits visits(own, a);
    if (threadIdx.x == 0) {
        mbarrier_init(shared.own_full, 1);
        shared.ring->init();
        fence_mbarrier_init();
    }
    sync_block();
    if (warpgroup_index() == CONSUMERS) {
        give_registers<PRODUCER_REGISTERS>();
        if (threadIdx.x == CONSUMERS * WARPGROUP) produce(shared, q, k, v, d_out, lse2, delta, own, visits, a);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        consume(shared, d_k, accumulate_k, d_v, accumulate_v, own, visits, a);
    }
}
