// Causal attention on sm_90a, what its kernels share: tiles in shared memory, a warpgroup's rows in registers, and the
// two kinds of product. bf16 in and out, f32 accumulation. Formulas, shapes and who owns what: causal_attention.cuh.
// After Shah et al., "FlashAttention-3", arXiv 2407.08608.
//
// A block is CONSUMERS warpgroups, each with 64 of the OWN rows, and behind them a producer warpgroup, one thread of
// which brings tiles by TMA into rings of STAGES stages. A stage has two mbarriers: `full` ends a phase when its bytes
// have landed, `empty` when every consumer warp is done with it.
//
// Compiled with HEAD (64, 80, 96 or 128), OWN (64 a consumer), VISIT and STAGES. Tiles are whole panels of 64 columns:
// copies fill columns from D on with zeros, and products stop at HEAD. With HEAD 80 and 96 an MN-major operand fills
// its last panel in part. The scale must be above 0: maxima are taken before it.
#pragma once
#include "causal_attention.cuh"
#include "hopper.cuh"

constexpr int CONSUMERS = OWN / 64;
constexpr int THREADS = (CONSUMERS + 1) * WARPGROUP;
constexpr int CONSUMER_WARPS = CONSUMERS * 4;
constexpr int PANELS = (HEAD + PANEL - 1) / PANEL;
static_assert(OWN % 64 == 0 && VISIT % 16 == 0 && HEAD % 16 == 0, "64 rows a warpgroup, steps of 16");

/// Registers of a thread; 65536 / 128 are shared by one warpgroup of producers and the consumers.
constexpr int PRODUCER_REGISTERS = CONSUMERS == 3 ? 32 : 24, CONSUMER_REGISTERS = CONSUMERS == 3 ? 160 : 240;

/// Elements of a tile [ROWS, HEAD] in shared memory, and the bytes that its copies count.
template <int ROWS> constexpr int TILE = ROWS * PANELS * PANEL;
template <int ROWS> constexpr u32 TILE_BYTES = TILE<ROWS> * sizeof(bf16);

/// A ring's mbarriers.
struct Ring {
    u64 full[STAGES], empty[STAGES];
    DEVICE void init() {
        UNROLL for (int i = 0; i < STAGES; i++) mbarrier_init(&full[i], 1), mbarrier_init(&empty[i], CONSUMER_WARPS);
    }
    /// The producer waits until the stage is free; `bytes` are coming. Gives the mbarrier that their copies count on.
    DEVICE u64 *fill(RingPlace<STAGES> place, u32 bytes) {
        mbarrier_wait(&empty[place.stage], place.parity ^ 1);
        mbarrier_arrive_expect(&full[place.stage], bytes);
        return &full[place.stage];
    }
    /// A consumer waits until the stage has landed.
    DEVICE void wait(RingPlace<STAGES> place) { mbarrier_wait(&full[place.stage], place.parity); }
    /// A consumer warp is done with the stage.
    DEVICE void free(RingPlace<STAGES> place) {
        if (lane_index() == 0) mbarrier_arrive(&empty[place.stage]);
    }
};

/// Starts the copy of rows first .. first + ROWS of a head, zeros beyond the tensor. x: [B, T, H, D].
template <int ROWS>
DEVICE void load_tile(bf16 *tile, const TensorMap &x, int first, int head, int batch, u64 *barrier) {
    UNROLL for (int panel = 0; panel < PANELS; panel++)
        tensor_load(tile + panel * ROWS * PANEL, x, panel * PANEL, head, first, batch, barrier);
}

/// Between the two passes of backward: lse2 and delta of a head are rows of so many numbers, whole tiles of 64 queries.
DEVICE int statistics_rows(const Attention &a) { return (a.queries + 63) / 64 * 64; }
/// Where those of a head start.
DEVICE i64 statistics(const Attention &a, int b, int h) { return ((i64)b * a.heads + h) * statistics_rows(a); }

// ---- a warpgroup's rows in registers

/// A consumer's 64 rows times COLUMNS columns: [n * 4 + i] is row_of(i), column_of(n, i).
template <int COLUMNS> struct Fragments {
    f32 at[COLUMNS / 2];
    template <class F> DEVICE void each(F f) {
        UNROLL for (int n = 0; n < COLUMNS / 8; n++) UNROLL for (int i = 0; i < 4; i++) f(at[n * 4 + i], n, i);
    }
    DEVICE void clear() {
        each([](f32 &x, int, int) { x = 0.0f; });
    }
};
/// Row and column of a fragment's element, the row within the block's tile.
DEVICE int row_of(int i) { return (int)warp_index() * 16 + (int)lane_index() / 4 + i / 2 * 8; }
DEVICE int column_of(int n, int i) { return n * 8 + (int)lane_index() % 4 * 2 + i % 2; }
/// The first of the warpgroup's rows within the block's tile.
DEVICE int warpgroup_row() { return (int)warpgroup_index() * 64; }

/// A number for each of a lane's two rows; [i / 2] belongs to element i. Four lanes share a row.
struct RowValues {
    f32 at[2];
    DEVICE f32 &operator[](int half) { return at[half]; }
    template <class F> DEVICE void each(F f) {
        UNROLL for (int half = 0; half < 2; half++) f(at[half], half);
    }
};

/// Scores rounded to bf16, as the left operand of a product: a step of 16 columns is two fragments.
typedef u32 Weights[VISIT / 16][4];
DEVICE void pack(Weights &p, const Fragments<VISIT> &s) {
    UNROLL for (int step = 0; step < VISIT / 16; step++)
        UNROLL for (int i = 0; i < 4; i++) p[step][i] = pack_bf16(s.at[step * 8 + i * 2], s.at[step * 8 + i * 2 + 1]);
}

// ---- products, started and not waited for

/// acc = a b^T: the warpgroup's rows of a tile [OWN, HEAD], and a visited tile [VISIT, HEAD].
DEVICE void start_transposed(Fragments<VISIT> &acc, const bf16 *a, const bf16 *b) {
    UNROLL for (int k = 0; k < HEAD; k += 16)
        wgmma<VISIT, Major::K>(acc.at, k_major<OWN>(a, warpgroup_row(), k), k_major<VISIT>(b, 0, k), k > 0);
}

/// acc += p b: b, a visited tile [VISIT, HEAD].
DEVICE void start(Fragments<HEAD> &acc, const Weights &p, const bf16 *b) {
    UNROLL for (int step = 0; step < VISIT / 16; step++)
        wgmma<HEAD, Major::MN>(acc.at, p[step], mn_major<VISIT>(b, step * 16), true);
}

// ---- results

DEVICE u32 add_pairs(u32 a, u32 b) { return pack_bf16(low_bf16(a) + low_bf16(b), high_bf16(a) + high_bf16(b)); }

/// The warpgroup's rows, each times its factor, become rows of a head or are added to them, `first` being the tile's
/// first; by way of `tile` [OWN, HEAD], whose rows of this warpgroup no product reads any more, so that global memory is
/// written in whole rows.
DEVICE void store_tile(bf16 *head, i64 stride, int first, int count, int width, bool accumulate, bf16 *tile,
                       Fragments<HEAD> &rows, RowValues factor) {
    named_barrier_sync(1 + warpgroup_index(), WARPGROUP); // the other warps' products have read their rows too
    UNROLL for (int n = 0; n < HEAD / 8; n++)
        UNROLL for (int i = 0; i < 4; i += 2) {
            const f32 *x = &rows.at[n * 4 + i];
            u32 *to = reinterpret_cast<u32 *>(tile + swizzled<OWN>(row_of(i), column_of(n, i)));
            *to = pack_bf16(x[0] * factor[i / 2], x[1] * factor[i / 2]);
        }
    sync_warp();
    for (int i = lane_index(); i < 16 * (HEAD / 8); i += 32) {
        const int row = (int)warp_index() * 16 + i / (HEAD / 8), column = i % (HEAD / 8) * 8;
        if (first + row >= count || column >= width) continue;
        uint4 *to = reinterpret_cast<uint4 *>(head + (first + row) * stride + column);
        uint4 x = *reinterpret_cast<const uint4 *>(tile + swizzled<OWN>(row, column));
        if (accumulate) {
            x.x = add_pairs(to->x, x.x), x.y = add_pairs(to->y, x.y);
            x.z = add_pairs(to->z, x.z), x.w = add_pairs(to->w, x.w);
        }
        *to = x;
    }
}
