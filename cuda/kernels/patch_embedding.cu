// Embedding of patches, out[n] = (1/K) sum_k table[ids[n, k]], and its gradient d_table[v] (+)= (1/K) sum over
// positions p of v of d_out[p / K]. table, d_table [V, packs]; out, d_out [rows, packs]; ids [rows, K]. K = 1 is the
// plain embedding. X: f32, bf16 or f64; OUT: type of d_table.
//
// Gradient: positions come sorted by id (`order`, `offsets`) and are cut into segments of SEGMENT, each walked by the
// threads of a row, so that the few ids that hold most of a text make no thread slow. A run of one id inside a segment
// is finished there; a run across segments leaves a partial row in each, which `patch_embedding_joins` adds in order.
// Partial rows of segment s: 2s, the run that began before it; 2s + 1, the one that begins in it and goes on.
//
// Traffic: forward K reads and one write of a row of out; backward K reads of a row of d_out, one write (and read, to
// accumulate) of a row of d_table for each id that occurs, and at most 4 / SEGMENT of the reads for partial rows. As
// many FLOPs as elements read.
#include "rows.cuh"

typedef Accumulator<X>::type A;

KERNEL(patch_embedding, 256, X *out, i64 out_stride, const X *table, i64 table_stride, const i32 *ids, i64 rows,
       i64 packs, i64 patch) {
    A share = A(1) / (A)patch;
    for_each_pack(rows, packs, [&](i64 n, i64 p) {
        A sum[PACK] = {};
        _Pragma("unroll 4") for (i64 k = 0; k < patch; k++) {
            Pack<X, PACK> in = load_pack<PACK>(table + ids[n * patch + k] * table_stride + p * PACK);
            UNROLL for (int i = 0; i < PACK; i++) sum[i] += widen(in[i]);
        }
        UNROLL for (int i = 0; i < PACK; i++) sum[i] *= share;
        put_pack(out + n * out_stride + p * PACK, sum, false);
    });
}

/// Positions that the threads of a row walk; most rows in flight in a block.
constexpr i32 SEGMENT = 64, FLIGHT = 8;

/// The id whose run holds `position`: the last v with offsets[v] <= position.
DEVICE i32 id_at(const i32 *offsets, i32 vocabulary, i32 position) {
    i32 low = 0, high = vocabulary; // offsets[low] <= position < offsets[high]
    while (high - low > 1) {
        i32 middle = low + (high - low) / 2;
        if (offsets[middle] <= position) low = middle;
        else high = middle;
    }
    return low;
}

KERNEL(patch_embedding_runs, 256, OUT *d_table, i64 table_stride, i32 accumulate, A *partials, const X *d_out,
       i64 d_out_stride, const i32 *order, const i32 *offsets, i32 positions, i32 vocabulary, i64 packs, i32 patch,
       u32 row_threads) {
    SHARED(i32, all_ids, [FLIGHT][SEGMENT]);
    SHARED(i32, all_rows, [FLIGHT][SEGMENT]);
    Place at = place(row_threads);
    i32 *ids = all_ids[at.row], *rows = all_rows[at.row];
    i64 segment = (i64)blockIdx.x * (blockDim.x / row_threads) + at.row;
    i64 start = segment * SEGMENT, left = positions - start;
    i32 count = left < 0 ? 0 : left < SEGMENT ? (i32)left : SEGMENT;
    for (i32 i = at.column; i < count; i += row_threads) {
        ids[i] = id_at(offsets, vocabulary, (i32)start + i);
        rows[i] = order[start + i] / patch;
    }
    sync_block();
    if (count == 0) return;
    bool begins_before = offsets[ids[0]] < start, goes_on = offsets[ids[count - 1] + 1] > start + count;
    A share = A(1) / (A)patch;

    for (i64 p = (i64)blockIdx.y * row_threads + at.column; p < packs; p += (i64)gridDim.y * row_threads) {
        A sum[PACK] = {};
        bool head = begins_before;
        for (i32 base = 0; base < count; base += AHEAD) {
            Pack<X, PACK> ahead[AHEAD];
            UNROLL for (i32 j = 0; j < AHEAD; j++)
                if (base + j < count) ahead[j] = load_pack<PACK>(d_out + rows[base + j] * d_out_stride + p * PACK);
            UNROLL for (i32 j = 0; j < AHEAD; j++) {
                i32 i = base + j;
                if (i >= count) break;
                UNROLL for (int e = 0; e < PACK; e++) sum[e] += widen(ahead[j][e]);
                bool last = i + 1 == count;
                if (!last && ids[i + 1] == ids[i]) continue;
                if (head || (last && goes_on)) {
                    put_pack(partials + ((2 * segment + !head) * packs + p) * PACK, sum, false);
                } else {
                    UNROLL for (int e = 0; e < PACK; e++) sum[e] *= share;
                    put_pack(d_table + ids[i] * table_stride + p * PACK, sum, accumulate);
                }
                UNROLL for (int e = 0; e < PACK; e++) sum[e] = 0;
                head = false;
            }
        }
    }
}

/// Finishes the runs that begin in a segment and go on beyond it.
KERNEL(patch_embedding_joins, 256, OUT *d_table, i64 table_stride, i32 accumulate, const A *partials,
       const i32 *offsets, i32 positions, i32 vocabulary, i64 packs, i32 patch, u32 row_threads) {
    Place at = place(row_threads);
    i64 segment = (i64)blockIdx.x * (blockDim.x / row_threads) + at.row;
    i64 start = segment * SEGMENT, next = start + SEGMENT;
    if (next >= positions) return;
    i32 id = id_at(offsets, vocabulary, (i32)next - 1);
    i64 end = offsets[id + 1];
    if (offsets[id] < start || end <= next) return;
    A share = A(1) / (A)patch;
    i64 last = (end - 1) / SEGMENT;
    for (i64 p = (i64)blockIdx.y * row_threads + at.column; p < packs; p += (i64)gridDim.y * row_threads) {
        A sum[PACK];
        get_pack(partials + ((2 * segment + 1) * packs + p) * PACK, sum);
        _Pragma("unroll 4") for (i64 s = segment + 1; s <= last; s++) {
            A more[PACK];
            get_pack(partials + (2 * s * packs + p) * PACK, more);
            UNROLL for (int e = 0; e < PACK; e++) sum[e] += more[e];
        }
        UNROLL for (int e = 0; e < PACK; e++) sum[e] *= share;
        put_pack(d_table + id * table_stride + p * PACK, sum, accumulate);
    }
}

/// Rows of ids that do not occur become zero.
KERNEL(patch_embedding_absent, 256, OUT *d_table, i64 table_stride, const i32 *offsets, i32 vocabulary, i64 packs) {
    for_each_pack(vocabulary, packs, [&](i64 v, i64 p) {
        if (offsets[v] != offsets[v + 1]) return;
        A zero[PACK] = {};
        put_pack(d_table + v * table_stride + p * PACK, zero, false);
    });
}
