// Cross-entropy of one softmax against K targets: lse = log sum_v e^logits[v], loss = sum_k w_k (lse -
// logits[target_k]), and its gradient d_logits[v] (+)= d_loss (n e^(logits[v] - lse) - sum of w_k with target_k = v), n
// the weight of the valid targets; a target of IGNORE is not valid. logits, d_logits [rows, packs], which may be one
// tensor; targets [rows, K], weights [K]. X: type of the logits, f32, bf16 or f64; the rest f32 (f64).
//
//   cross_entropy           losses and lse: one read of the logits
//   cross_entropy_backward  one read and one write
//   cross_entropy_fused     losses and, in place of the logits, the gradient: one read and one write while rows fit in
//                           shared memory, else two reads
//
// About 15 FLOPs an element. Thread k of a row has target k: the gradient there is computed apart, from the logit, and
// written last, so that each element is rounded once. K is at most the threads of a row.
#include "rows.cuh"

typedef Accumulator<X>::type A;

constexpr i32 IGNORE = -100;
/// Threads of a block at most; f64 takes twice the registers.
constexpr int MOST = sizeof(A) == 8 ? 512 : 1024;

/// The targets of a row.
struct Targets {
    const i32 *target;
    const A *weight;
    i32 k;

    /// Weight of the valid targets.
    DEVICE A total() const {
        A sum = 0;
        for (i32 j = 0; j < k; j++) sum += target[j] == IGNORE ? A(0) : weight[j];
        return sum;
    }
    /// Whether any target is valid.
    DEVICE bool any() const {
        bool valid = false;
        for (i32 j = 0; j < k; j++) valid |= target[j] != IGNORE;
        return valid;
    }
    /// sum_k w_k (lse - logits[target_k]), by the first warp of the row; its lanes get the result.
    DEVICE A loss(A lse, const X *logits, u32 lane) const {
        A sum = 0;
        for (i32 j = lane; j < k; j += WARP)
            if (target[j] != IGNORE) sum += weight[j] * (lse - widen(logits[target[j]]));
        UNROLL for (int distance = 16; distance > 0; distance /= 2) sum += shuffle_xor(sum, distance);
        return sum;
    }
};

/// The one target that a thread of the row takes care of: valid and the first of its value, or none.
struct OwnTarget {
    i32 index;
    A weight; // of all targets of that value
    A logit;

    DEVICE OwnTarget(Targets targets, const X *logits, u32 column, bool live) : index(IGNORE), weight(0), logit(0) {
        if (!live || (i32)column >= targets.k) return;
        index = targets.target[column];
        for (i32 j = 0; j < (i32)column; j++)
            if (targets.target[j] == index) index = IGNORE;
        if (index == IGNORE) return;
        for (i32 j = (i32)column; j < targets.k; j++)
            if (targets.target[j] == index) weight += targets.weight[j];
        logit = widen(logits[index]);
    }
};

/// Waits for the threads of the row (or for more).
DEVICE void sync_row(u32 row_threads) {
    if (row_threads == WARP) sync_warp();
    else sync_block();
}

KERNEL_OCCUPANCY(cross_entropy, MOST, 1, A *losses, i64 losses_stride, A *lse, i64 lse_stride, const X *logits,
                 i64 stride, const i32 *targets, const A *weights, i64 rows, i64 packs, i32 k, u32 row_threads) {
    SHARED(A, scratch, [ROW_SCRATCH]);
    Place at = place(row_threads);
    i64 n = (i64)blockIdx.x * (blockDim.x / row_threads) + at.row;
    bool live = n < rows;
    Share share(live ? packs : 0, at.column, row_threads);
    const X *row = logits + n * stride;
    Exponentials<X> sum;
    sweep(CachedRow<X, PACK>(row, nullptr), share, [&](i32, const Pack<X, PACK> &in) { sum.add(in); });
    sum.combine(scratch, row_threads);
    if (!live || at.column >= WARP) return;
    A top = sum.log_sum(), loss = Targets{targets + n * k, weights, k}.loss(top, row, at.column);
    if (at.column == 0) {
        losses[n * losses_stride] = loss;
        lse[n * lse_stride] = top;
    }
}

KERNEL_OCCUPANCY(cross_entropy_backward, MOST, 1, X *d_logits, i64 d_stride, i32 accumulate, const A *d_losses,
                 i64 d_losses_stride, const X *logits, i64 stride, const A *lse, i64 lse_stride, const i32 *targets,
                 const A *weights, i64 rows, i64 packs, i32 k, u32 row_threads) {
    Place at = place(row_threads);
    i64 n = (i64)blockIdx.x * (blockDim.x / row_threads) + at.row;
    bool live = n < rows;
    Share share(live ? packs : 0, at.column, row_threads);
    const X *row = logits + n * stride;
    X *d_row = d_logits + n * d_stride;
    Targets all{targets + n * k, weights, k};
    OwnTarget own(all, row, at.column, live);
    bool any = live && all.any();
    A top = any ? lse[n * lse_stride] : A(0), d_loss = any ? d_losses[n * d_losses_stride] : A(0);
    A scale = any ? d_loss * all.total() : A(0);
    A exact = own.index == IGNORE ? A(0) : scale * exponential<X>(own.logit - top) - d_loss * own.weight;
    if (own.index != IGNORE && accumulate) exact += widen(d_row[own.index]);

    sync_row(row_threads); // the targets' logits have been read
    sweep(CachedRow<X, PACK>(row, nullptr), share, [&](i32 p, const Pack<X, PACK> &in) {
        A d[PACK];
        UNROLL for (int i = 0; i < PACK; i++) d[i] = any ? scale * exponential<X>(widen(in[i]) - top) : A(0);
        put_pack(d_row + p * PACK, d, accumulate);
    });
    sync_row(row_threads); // every element but the targets' is final
    if (own.index != IGNORE) d_row[own.index] = narrow<X>(exact);
}

/// `scale`: the gradient of every loss, 0-d.
KERNEL_OCCUPANCY(cross_entropy_fused, MOST, 1, A *losses, i64 losses_stride, X *logits, i64 stride, const A *scale,
                 const i32 *targets, const A *weights, i64 rows, i64 packs, i32 k, u32 row_threads, i32 cached) {
    SHARED(A, scratch, [ROW_SCRATCH]);
    DYNAMIC_SHARED(X, shared);
    Place at = place(row_threads);
    i64 n = (i64)blockIdx.x * (blockDim.x / row_threads) + at.row;
    bool live = n < rows;
    Share share(live ? packs : 0, at.column, row_threads);
    X *row = logits + n * stride;
    CachedRow<X, PACK> values(row, cached ? shared + at.row * packs * PACK : nullptr);
    Targets all{targets + n * k, weights, k};
    OwnTarget own(all, row, at.column, live);
    Exponentials<X> sum;
    sweep(values, share, [&](i32, const Pack<X, PACK> &in) { sum.add(in); });
    sum.combine(scratch, row_threads);
    A lse = sum.log_sum();
    if (live && at.column < WARP) {
        A loss = all.loss(lse, row, at.column);
        if (at.column == 0) losses[n * losses_stride] = loss;
    }
    bool any = live && all.any();
    A d_loss = any ? *scale : A(0), factor = any ? d_loss * all.total() : A(0);

    sync_row(row_threads); // the targets' logits have been read
    for (i32 p = share.column; p < share.packs; p += share.step) {
        Pack<X, PACK> in = values.again(p);
        A d[PACK];
        UNROLL for (int i = 0; i < PACK; i++) d[i] = any ? factor * exponential<X>(widen(in[i]) - lse) : A(0);
        put_pack(row + p * PACK, d, false);
    }
    sync_row(row_threads); // every element but the targets' is final
    if (own.index != IGNORE) row[own.index] = narrow<X>(factor * exponential<X>(own.logit - lse) - d_loss * own.weight);
}
