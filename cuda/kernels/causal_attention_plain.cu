// Causal attention without tensor cores, forward and backward, for elements of any type X. Products and sums are taken
// in A: f64 for f64, else f32. Formulas, shapes and tiles: causal_attention.cuh.
//
// THREADS are 16 x 16: thread (y, x) owns ROWS neighbouring rows from y * ROWS on, and of them the columns x, x + 16,
// ... of scores and outputs. A row's threads are half a warp, so what they pass each other through shared memory takes
// no barrier of the block. Rows in shared memory are HEAD and 16 bytes apart, an odd number of 16-byte units, so that
// eight rows read at once lie in different banks.
#include "causal_attention.cuh"
#include "rows.cuh"

typedef Accumulator<X>::type A;
DEVICE f32 exponential_2(f32 x) { return exp2f(x); }
DEVICE f64 exponential_2(f64 x) { return exp2(x); }

constexpr int THREADS = 256;
constexpr int PACK = PACK_16<A>, PITCH = HEAD + PACK, SCORES_PITCH = VISIT + PACK;
constexpr int ROWS = OWN / 16, COLUMNS = VISIT / 16, WIDTHS = HEAD / 16;
static_assert(HEAD % 16 == 0 && VISIT % 16 == 0 && OWN % 16 == 0, "16 x 16 threads");

/// The first of this thread's rows, and the first of its columns.
DEVICE int first_row() { return (int)threadIdx.x / 16 * ROWS; }
DEVICE int first_column() { return (int)threadIdx.x % 16; }

/// Folds a value over the 16 threads of a row; every one of them gets the result.
template <class F> DEVICE A over_row(A x, F fold) {
    UNROLL for (int distance = 8; distance > 0; distance /= 2) x = fold(x, shuffle_xor(x, distance));
    return x;
}
DEVICE A row_total(A x) {
    return over_row(x, [](A a, A b) { return a + b; });
}

/// Copies rows first .. first + COUNT of a head, zeros from row `count` and column `width` on.
template <int COUNT>
DEVICE void load_tile(A *tile, const X *head, i64 stride, int first, int count, const Attention &a) {
    constexpr int WHOLE = PACK_16<X>;
    if (a.aligned) {
        for (int i = threadIdx.x; i < COUNT * (HEAD / WHOLE); i += THREADS) {
            const int row = i / (HEAD / WHOLE), column = i % (HEAD / WHOLE) * WHOLE;
            Pack<X, WHOLE> x{};
            if (first + row < count && column < a.width) x = load_pack<WHOLE>(head + (first + row) * stride + column);
            UNROLL for (int j = 0; j < WHOLE; j += PACK) {
                Pack<A, PACK> part;
                UNROLL for (int l = 0; l < PACK; l++) part[l] = widen(x[j + l]);
                store_pack(tile + row * PITCH + column + j, part);
            }
        }
    } else {
        for (int i = threadIdx.x; i < COUNT * HEAD; i += THREADS) {
            const int row = i / HEAD, column = i % HEAD;
            const bool inside = first + row < count && column < a.width;
            tile[row * PITCH + column] = inside ? widen(head[(first + row) * stride + column]) : A(0);
        }
    }
}

/// This thread's part of scores [OWN, VISIT] or of rows [OWN, HEAD]: [i][j] is row first_row() + i, column
/// first_column() + 16 j.
template <int COUNT> struct Part {
    A at[ROWS][COUNT];
    DEVICE Part() : at{} {}
    template <class F> DEVICE void each(F f) {
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int j = 0; j < COUNT; j++) f(at[i][j], first_row() + i, first_column() + j * 16, i);
    }
};

/// acc += a b^T: a, a tile [OWN, HEAD]; b, a tile [VISIT, HEAD].
DEVICE void multiply_transposed(Part<COLUMNS> &acc, const A *a, const A *b) {
    a += first_row() * PITCH, b += first_column() * PITCH;
    _Pragma("unroll 4") for (int k = 0; k < HEAD; k += PACK) {
        Pack<A, PACK> rows[ROWS], columns[COLUMNS];
        UNROLL for (int i = 0; i < ROWS; i++) rows[i] = load_pack<PACK>(a + i * PITCH + k);
        UNROLL for (int j = 0; j < COLUMNS; j++) columns[j] = load_pack<PACK>(b + j * 16 * PITCH + k);
        UNROLL for (int l = 0; l < PACK; l++)
            UNROLL for (int i = 0; i < ROWS; i++)
                UNROLL for (int j = 0; j < COLUMNS; j++) acc.at[i][j] += rows[i][l] * columns[j][l];
    }
}

/// acc += p b: p, scores [OWN, VISIT], which pass through `scores` to the threads of their row; b, a tile [VISIT,
/// HEAD].
DEVICE void multiply(Part<WIDTHS> &acc, Part<COLUMNS> &p, A *scores, const A *b) {
    sync_warp(); // the row's threads are done with what was there
    p.each([&](A &x, int row, int column, int) { scores[row * SCORES_PITCH + column] = x; });
    sync_warp();
    scores += first_row() * SCORES_PITCH, b += first_column();
    _Pragma("unroll 2") for (int k = 0; k < VISIT; k += PACK) {
        Pack<A, PACK> rows[ROWS];
        UNROLL for (int i = 0; i < ROWS; i++) rows[i] = load_pack<PACK>(scores + i * SCORES_PITCH + k);
        UNROLL for (int l = 0; l < PACK; l++)
            UNROLL for (int j = 0; j < WIDTHS; j++) {
                const A x = b[(k + l) * PITCH + j * 16];
                UNROLL for (int i = 0; i < ROWS; i++) acc.at[i][j] += rows[i][l] * x;
            }
    }
}

/// Rows, each times a factor, become rows of a head or are added to them; `first` is the tile's first.
DEVICE void store_rows(X *head, i64 stride, int first, int count, const Attention &a, bool accumulate,
                       Part<WIDTHS> &rows, const A (&factor)[ROWS]) {
    rows.each([&](A &x, int row, int column, int i) {
        if (first + row >= count || column >= a.width) return;
        X *to = head + (first + row) * stride + column;
        *to = narrow<X>(accumulate ? widen(*to) + x * factor[i] : x * factor[i]);
    });
}

DEVICE bool is_seen(int key, int query, const Attention &a) { return key <= query + a.shift() && query < a.queries; }

/// A block owns OWN queries. Shared memory: q [OWN], k [VISIT], v [VISIT] rows of PITCH, scores [OWN] rows of
/// SCORES_PITCH.
KERNEL_OCCUPANCY(causal_attention, THREADS, 1, X *out, A *lse, const X *q, const X *k, const X *v, Attention a) {
    DYNAMIC_SHARED(A, q_tile);
    A *k_tile = q_tile + OWN * PITCH, *v_tile = k_tile + VISIT * PITCH, *scores = v_tile + VISIT * PITCH;
    const Owned own(a.queries, a.heads, true);
    const int seen = min(own.first + OWN, a.queries) + a.shift();
    const A scale2 = (A)(a.exact_scale * LOG2_E);
    k = a.k.at(k, own.batch, a.group_of(own.head)), v = a.v.at(v, own.batch, a.group_of(own.head));
    load_tile<OWN>(q_tile, a.q.at(q, own.batch, own.head), a.q.position, own.first, a.queries, a);
    Part<WIDTHS> o;
    A top[ROWS], sum[ROWS];
    UNROLL for (int i = 0; i < ROWS; i++) top[i] = -F32_INFINITY, sum[i] = A(0);

    for (int first_key = 0; first_key < seen; first_key += VISIT) {
        sync_block(); // the tiles are free
        load_tile<VISIT>(k_tile, k, a.k.position, first_key, a.keys, a);
        load_tile<VISIT>(v_tile, v, a.v.position, first_key, a.keys, a);
        sync_block();
        Part<COLUMNS> s;
        multiply_transposed(s, q_tile, k_tile);
        s.each([&](A &x, int row, int column, int) {
            x *= scale2;
            if (first_key + column > own.first + row + a.shift()) x = -F32_INFINITY;
        });
        UNROLL for (int i = 0; i < ROWS; i++) {
            A largest = top[i];
            UNROLL for (int j = 0; j < COLUMNS; j++) largest = greater_or_nan(largest, s.at[i][j]);
            largest = over_row(largest, [](A a, A b) { return greater_or_nan(a, b); });
            const A base = largest == -F32_INFINITY ? A(0) : largest; // no finite score yet: weights are 0
            const A correction = exponential_2(top[i] - base);
            top[i] = largest, sum[i] *= correction;
            UNROLL for (int j = 0; j < WIDTHS; j++) o.at[i][j] *= correction;
            UNROLL for (int j = 0; j < COLUMNS; j++) sum[i] += s.at[i][j] = exponential_2(s.at[i][j] - base);
        }
        multiply(o, s, scores, v_tile);
    }

    lse = a.lse.at(lse, own.batch, own.head);
    UNROLL for (int i = 0; i < ROWS; i++) {
        const int query = own.first + first_row() + i;
        sum[i] = row_total(sum[i]);
        if (first_column() == 0 && query < a.queries) lse[query] = top[i] * (A)LN_2 + logarithm(sum[i]);
        sum[i] = A(1) / sum[i];
    }
    store_rows(a.out.at(out, own.batch, own.head), a.out.position, own.first, a.queries, a, false, o, sum);
}

/// A block owns OWN queries, and leaves their delta for the other pass. Shared memory: q, d_out [OWN], k, v [VISIT]
/// rows of PITCH, scores [OWN] rows of SCORES_PITCH.
KERNEL_OCCUPANCY(causal_attention_d_q, THREADS, 1, X *d_q, i32 accumulate, A *delta_out, const X *d_out, const X *q,
                 const X *k, const X *v, const X *out, const A *lse, Attention a) {
    DYNAMIC_SHARED(A, q_tile);
    A *d_out_tile = q_tile + OWN * PITCH, *k_tile = d_out_tile + OWN * PITCH, *v_tile = k_tile + VISIT * PITCH;
    A *scores = v_tile + VISIT * PITCH;
    const Owned own(a.queries, a.heads, true);
    const int seen = min(own.first + OWN, a.queries) + a.shift();
    const A scale2 = (A)(a.exact_scale * LOG2_E);
    k = a.k.at(k, own.batch, a.group_of(own.head)), v = a.v.at(v, own.batch, a.group_of(own.head));
    out = a.out.at(out, own.batch, own.head), lse = a.lse.at(lse, own.batch, own.head);
    delta_out += a.delta(own.batch, own.head);
    load_tile<OWN>(q_tile, a.q.at(q, own.batch, own.head), a.q.position, own.first, a.queries, a);
    load_tile<OWN>(d_out_tile, a.d_out.at(d_out, own.batch, own.head), a.d_out.position, own.first, a.queries, a);
    sync_block();
    A delta[ROWS], lse2[ROWS], scale[ROWS];
    UNROLL for (int i = 0; i < ROWS; i++) {
        const int row = first_row() + i, query = own.first + row;
        A sum = A(0);
        if (query < a.queries)
            for (int column = first_column(); column < a.width; column += 16)
                sum += widen(out[query * a.out.position + column]) * d_out_tile[row * PITCH + column];
        delta[i] = row_total(sum);
        lse2[i] = query < a.queries ? lse[query] * (A)LOG2_E : A(0);
        if (first_column() == 0 && query < a.queries) delta_out[query] = delta[i];
        scale[i] = (A)a.exact_scale;
    }

    Part<WIDTHS> dq;
    for (int first_key = 0; first_key < seen; first_key += VISIT) {
        sync_block(); // the tiles are free
        load_tile<VISIT>(k_tile, k, a.k.position, first_key, a.keys, a);
        load_tile<VISIT>(v_tile, v, a.v.position, first_key, a.keys, a);
        sync_block();
        Part<COLUMNS> s, ds;
        multiply_transposed(s, q_tile, k_tile);
        multiply_transposed(ds, d_out_tile, v_tile);
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int j = 0; j < COLUMNS; j++) {
                const int key = first_key + first_column() + j * 16, query = own.first + first_row() + i;
                const A p = exponential_2(s.at[i][j] * scale2 - lse2[i]);
                ds.at[i][j] = is_seen(key, query, a) ? p * (ds.at[i][j] - delta[i]) : A(0);
            }
        multiply(dq, ds, scores, k_tile);
    }
    store_rows(a.d_q.at(d_q, own.batch, own.head), a.d_q.position, own.first, a.queries, a, accumulate, dq, scale);
}

/// A block owns OWN keys and visits, head by head of their group, the tiles of queries that see them. Scores are
/// transposed. Shared memory: k, v [OWN], q, d_out [VISIT] rows of PITCH, scores [OWN] rows of SCORES_PITCH, lse, delta
/// [VISIT].
KERNEL_OCCUPANCY(causal_attention_d_kv, THREADS, 1, X *d_k, i32 accumulate_k, X *d_v, i32 accumulate_v,
                 const X *d_out, const X *q, const X *k, const X *v, const A *lse, const A *delta, Attention a) {
    DYNAMIC_SHARED(A, k_tile);
    A *v_tile = k_tile + OWN * PITCH, *q_tile = v_tile + OWN * PITCH, *d_out_tile = q_tile + VISIT * PITCH;
    A *scores = d_out_tile + VISIT * PITCH, *lse2_tile = scores + OWN * SCORES_PITCH, *delta_tile = lse2_tile + VISIT;
    const Owned own(a.keys, a.groups, false);
    const A scale2 = (A)(a.exact_scale * LOG2_E);
    const int per_group = a.heads / a.groups, first_seer = max(own.first - a.shift(), 0) / VISIT * VISIT;
    load_tile<OWN>(k_tile, a.k.at(k, own.batch, own.head), a.k.position, own.first, a.keys, a);
    load_tile<OWN>(v_tile, a.v.at(v, own.batch, own.head), a.v.position, own.first, a.keys, a);
    Part<WIDTHS> dk, dv;
    for (int head = own.head * per_group; head < (own.head + 1) * per_group; head++) {
        const A *lse_head = a.lse.at(lse, own.batch, head), *delta_head = delta + a.delta(own.batch, head);
        const X *q_head = a.q.at(q, own.batch, head), *d_out_head = a.d_out.at(d_out, own.batch, head);
        for (int first_query = first_seer; first_query < a.queries; first_query += VISIT) {
            sync_block(); // the tiles are free
            load_tile<VISIT>(q_tile, q_head, a.q.position, first_query, a.queries, a);
            load_tile<VISIT>(d_out_tile, d_out_head, a.d_out.position, first_query, a.queries, a);
            for (int i = threadIdx.x; i < VISIT; i += THREADS) {
                const bool inside = first_query + i < a.queries;
                lse2_tile[i] = inside ? lse_head[first_query + i] * (A)LOG2_E : A(0);
                delta_tile[i] = inside ? delta_head[first_query + i] : A(0);
            }
            sync_block();
            Part<COLUMNS> p, ds;
            multiply_transposed(p, k_tile, q_tile);
            multiply_transposed(ds, v_tile, d_out_tile);
            UNROLL for (int i = 0; i < ROWS; i++)
                UNROLL for (int j = 0; j < COLUMNS; j++) {
                    const int key = own.first + first_row() + i, at = first_column() + j * 16;
                    const A x = exponential_2(p.at[i][j] * scale2 - lse2_tile[at]);
                    p.at[i][j] = is_seen(key, first_query + at, a) ? x : A(0);
                    ds.at[i][j] = p.at[i][j] * (ds.at[i][j] - delta_tile[at]);
                }
            multiply(dv, p, scores, d_out_tile);
            multiply(dk, ds, scores, q_tile);
        }
    }
    A scale[ROWS], one[ROWS];
    UNROLL for (int i = 0; i < ROWS; i++) scale[i] = (A)a.exact_scale, one[i] = A(1);
    store_rows(a.d_k.at(d_k, own.batch, own.head), a.d_k.position, own.first, a.keys, a, accumulate_k, dk, scale);
    store_rows(a.d_v.at(d_v, own.batch, own.head), a.d_v.position, own.first, a.keys, a, accumulate_v, dv, one);
}
