// Rows of causal scores [rows, packs] of type S, row n being query n % queries of its head, as probabilities of type X:
// key s of the query t is seen if s <= t + keys - queries, and p = e^(score - lse) over what is seen, 0 elsewhere; lse is
// the log-sum-exp of a row. S: X's accumulator. Traffic: one read of the scores while rows fit in shared memory, else
// two, and one write of p. About 15 FLOPs an element.
#include "rows.cuh"

typedef Accumulator<X>::type S;

/// `lse` [rows] may be null.
KERNEL_OCCUPANCY(causal_softmax, 512, 1, X *p, S *lse, const S *scores, i64 rows, i64 packs, i64 queries, u32 row_threads,
                 i32 cached) {
    SHARED(S, scratch, [ROW_SCRATCH]);
    DYNAMIC_SHARED(S, shared);
    Place at = place(row_threads);
    i64 n = (i64)blockIdx.x * (blockDim.x / row_threads) + at.row, width = packs * PACK;
    bool live = n < rows;
    Share share(live ? packs : 0, at.column, row_threads);
    i64 seen = n % queries + 1 + width - queries;
    auto masked = [&](i32 pack, Pack<S, PACK> in) {
        UNROLL for (int i = 0; i < PACK; i++)
            if ((i64)pack * PACK + i >= seen) in[i] = (S)-F32_INFINITY;
        return in;
    };
    CachedRow<S, PACK> row(scores + n * width, cached ? shared + at.row * width : nullptr);
    Exponentials<S> sum;
    sweep(row, share, [&](i32 pack, const Pack<S, PACK> &in) { sum.add(masked(pack, in)); });
    sum.combine(scratch, row_threads);
    S top = sum.log_sum();
    if (lse && live && at.column == 0) lse[n] = top;
    for (i32 pack = share.column; pack < share.packs; pack += share.step) {
        Pack<S, PACK> in = masked(pack, row.again(pack));
        S y[PACK];
        UNROLL for (int i = 0; i < PACK; i++) y[i] = exponential<S>(in[i] - top);
        put_pack(p + n * width + pack * PACK, y, false);
    }
}
