// The functions of hopper.cuh in one kernel, with places for mistakes: MISTAKE is the number of the one that is made, 0
// for none. out [rows, N] = 2 a b + bias, a [rows, depth], b [depth, N] or, with B_MAJOR = K, [N, depth], in tiles of 128
// rows and steps of 64. A producer warpgroup fills a ring of two stages; each of two consumer warpgroups doubles
// its 64 rows of a in shared memory by ordinary stores and multiplies them, or with A_REGISTERS takes them into
// registers.
#include "hopper.cuh"

constexpr int N = COLUMNS;
constexpr Major B = Major::B_MAJOR;
constexpr int STAGES = 2, ROWS = 128, STEP = 64, CONSUMERS = 2;
constexpr int A_TILE = ROWS * STEP, B_TILE = B == Major::K ? N * STEP : (N + PANEL - 1) / PANEL * PANEL * STEP;
constexpr int STAGE = (A_TILE + B_TILE + 511) / 512 * 512;

struct Barriers {
    u64 full[STAGES], empty[STAGES], bias;
};

DEVICE void produce(bf16 *stages, f32 *bias_tile, Barriers &barriers, const TensorMap &a, const TensorMap &b,
                    const f32 *bias, int depth) {
    mbarrier_arrive_expect(&barriers.bias, N * sizeof(f32));
    bulk_load(bias_tile, bias, N * sizeof(f32), &barriers.bias);
    RingPlace<STAGES> place;
    for (int k = 0; k < depth; k += STEP, place.advance()) {
        bf16 *a_tile = stages + place.stage * STAGE, *b_tile = a_tile + A_TILE;
        u64 *full = &barriers.full[place.stage];
        const u32 parity = MISTAKE == 9 ? place.parity : place.parity ^ 1; // 9: waits for a phase that never ends
        if (MISTAKE != 2) mbarrier_wait(&barriers.empty[place.stage], parity); // 2: overwrites what is in use
        const int missing = MISTAKE == 10 ? 16 : 0;                             // 10: expects too few bytes
        mbarrier_arrive_expect(full, (A_TILE + B_TILE) * sizeof(bf16) - missing);
        tensor_load(a_tile, a, k, blockIdx.x * ROWS, full);
        if (B == Major::K) {
            tensor_load(MISTAKE == 14 ? b_tile + 64 : b_tile, b, k, 0, full); // 14: no multiple of 1024 bytes
        } else {
            UNROLL for (int column = 0; column < N; column += PANEL)
                tensor_load(b_tile + column * STEP, b, column, k, full);
        }
    }
}

DEVICE void consume(f32 *out, const bf16 *stages, const f32 *bias_tile, Barriers &barriers, int rows, int depth) {
    const int group = warpgroup_index(), thread = threadIdx.x % WARPGROUP;
    f32 d[N / 2];
    UNROLL for (int i = 0; i < N / 2; i++) d[i] = 0.0f;
    u32 registers[STEP / 16][4];
    RingPlace<STAGES> place;
    for (int k = 0; k < depth; k += STEP, place.advance()) {
        bf16 *a_tile = const_cast<bf16 *>(stages) + place.stage * STAGE;
        const bf16 *b_tile = a_tile + A_TILE;
        if (MISTAKE != 1) mbarrier_wait(&barriers.full[place.stage], place.parity); // 1: reads before the copies land
        if (A_REGISTERS) {
            UNROLL for (int step = 0; step < STEP / 16; step++)
                UNROLL for (int i = 0; i < 4; i++) {
                    const int row = group * 64 + thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8;
                    const int column = step * 16 + thread % 4 * 2 + i / 2 * 8;
                    const u32 pair = *reinterpret_cast<const u32 *>(a_tile + swizzled<ROWS>(row, column));
                    registers[step][i] = pack_bf16(2 * low_bf16(pair), 2 * high_bf16(pair));
                }
        } else {
            for (int i = thread; i < 64 * STEP; i += WARPGROUP) {
                bf16 &x = a_tile[swizzled<ROWS>(group * 64 + i / STEP, i % STEP)];
                x = round_to<bf16>(2 * to_f32(x));
            }
            if (MISTAKE != 6) fence_async();                              // 6: products do not see the stores
            if (MISTAKE != 7) named_barrier_sync(1 + group, WARPGROUP);   // 7: others have not stored yet
        }
        if (MISTAKE != 11) wgmma_fence(d, registers);                     // 11: registers are not handed over
        UNROLL for (int step = 0; step < STEP / 16; step++) {
            const u64 b = B == Major::K ? k_major<N>(b_tile, 0, step * 16) : mn_major<STEP>(b_tile, step * 16);
            if (A_REGISTERS) wgmma<N, B>(d, registers[step], b, true);
            else wgmma<N, B>(d, k_major<ROWS>(a_tile, group * 64, step * 16), b, true);
        }
        wgmma_commit();
        if (MISTAKE == 3 && thread == 0) mbarrier_arrive(&barriers.empty[place.stage]); // 3: while products read it
        if (MISTAKE == 15 && A_REGISTERS) registers[1][0] = 0; // 15: while products read it
        if (MISTAKE == 4) wgmma_wait<0>();                     // 4: the accumulators are not named
        else if (MISTAKE == 5) wgmma_wait<1>(d);               // 5: one group may be under way
        else wgmma_wait<0>(d);
        if (MISTAKE == 3) continue;
        if (MISTAKE != 13) named_barrier_sync(1 + group, WARPGROUP); // 13: other warps' products still read it
        if (thread == 0) mbarrier_arrive(&barriers.empty[place.stage]);
    }
    if (MISTAKE != 16) mbarrier_wait(&barriers.bias, 0); // 16: reads before the copy lands
    UNROLL for (int i = 0; i < N / 2; i++) {
        const int row = blockIdx.x * ROWS + group * 64 + thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
        const int column = i / 4 * 8 + thread % 4 * 2 + i % 2;
        if (row < rows) out[row * N + column] = d[i] + bias_tile[column];
    }
}

KERNEL_OCCUPANCY(hopper, (CONSUMERS + 1) * WARPGROUP, 1, f32 *out, const GRID_CONSTANT TensorMap a,
                 const GRID_CONSTANT TensorMap b, const f32 *bias, u32 rows, u32 depth) {
    DYNAMIC_SHARED(bf16, stages);
    f32 *bias_tile = reinterpret_cast<f32 *>(stages + STAGES * STAGE);
    Barriers &barriers = *reinterpret_cast<Barriers *>(bias_tile + 128);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) mbarrier_init(&barriers.full[i], 1), mbarrier_init(&barriers.empty[i], CONSUMERS);
        mbarrier_init(&barriers.bias, MISTAKE == 17 ? 2 : 1); // 17: waits for an arrival that does not come
        if (MISTAKE != 8) fence_mbarrier_init();              // 8: copies may not find the mbarriers
    }
    sync_block();
    if (warpgroup_index() == CONSUMERS) {
        give_registers<MISTAKE == 12 ? 40 : 24>();
        if (threadIdx.x == CONSUMERS * WARPGROUP) produce(stages, bias_tile, barriers, a, b, bias, depth);
    } else {
        take_registers<MISTAKE == 12 ? 240 : 232>(); // 12: with the producer's more than there are
        consume(out, stages, bias_tile, barriers, rows, depth);
    }
}
