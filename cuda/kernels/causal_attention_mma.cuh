// Causal attention on tensor cores: a warp's rows in registers, tiles in shared memory, and the two kinds of product.
// bf16 in and out, f32 accumulation. Formulas, shapes and tiles: causal_attention.cuh.
//
// A warp owns M_TILES * 16 whole rows, so that scores never leave its registers: the accumulators of one product are an
// operand of the next. Rows in shared memory are HEAD + 8 elements apart, an odd number of 16-byte units, so that the
// eight rows of a matrix fragment lie in different banks. Compiled with WARPS besides HEAD, OWN and VISIT. The scale
// must be above 0: maxima are taken before it.
#pragma once
#include "causal_attention.cuh"
#include "tensor_cores.cuh"

constexpr int PITCH = HEAD + 8;
constexpr int THREADS = WARPS * 32;
constexpr int M_TILES = OWN / (WARPS * 16);
static_assert(HEAD % 16 == 0 && VISIT % 16 == 0 && OWN % (WARPS * 16) == 0, "tiles are made of 16 x 16 fragments");

// ---- a warp's rows in registers

/// Index of the first of the warp's rows in the block's tile.
DEVICE int warp_row() { return (int)warp_index() * (M_TILES * 16); }

/// The warp's rows times COLUMNS columns: [m][n][i] is row m * 16 + lane / 4 + i / 2 * 8, column n * 8 + lane % 4 * 2 +
/// i % 2.
template <int COLUMNS> struct Fragments {
    f32 at[M_TILES][COLUMNS / 8][4];
    DEVICE Fragments() : at{} {}
    template <class F> DEVICE void each(F f) {
        UNROLL for (int m = 0; m < M_TILES; m++)
            UNROLL for (int n = 0; n < COLUMNS / 8; n++)
                UNROLL for (int i = 0; i < 4; i++) f(at[m][n][i], m, n, i);
    }
};
/// Row and column of a fragment's element, the row within the block's tile.
DEVICE int row_of(int m, int i) { return warp_row() + m * 16 + (int)lane_index() / 4 + i / 2 * 8; }
DEVICE int column_of(int n, int i) { return n * 8 + (int)lane_index() % 4 * 2 + i % 2; }

/// A number for each row of which this lane holds elements; [m][i / 2] belongs to element [m][n][i]. Four lanes share a
/// row.
struct RowValues {
    f32 at[M_TILES][2];
    DEVICE f32 (&operator[](int m))[2] { return at[m]; }
    template <class F> DEVICE void each(F f) {
        UNROLL for (int m = 0; m < M_TILES; m++)
            UNROLL for (int half = 0; half < 2; half++) f(at[m][half], m, half);
    }
    DEVICE explicit RowValues(f32 x) {
        each([&](f32 &value, int, int) { value = x; });
    }
};

// ---- tiles in shared memory

/// Starts the copy of rows first .. first + ROWS of a head, zeros from row `count` and column `width` on. Eight
/// neighbouring threads copy 128 bytes of a row.
template <int ROWS>
DEVICE void load_tile(bf16 *tile, const bf16 *head, i64 stride, int first, int count, const Attention &a) {
    constexpr int LANES = HEAD < 64 ? 4 : 8, STEP = THREADS / LANES;
    const int first_row = threadIdx.x / LANES, first_column = threadIdx.x % LANES * 8;
    const bf16 *from = head + (first + first_row) * stride;
    bf16 *to = tile + first_row * PITCH;
    // Not unrolled: addresses kept ahead would take registers from the scores.
    _Pragma("unroll 1") for (int row = first_row; row < ROWS; row += STEP) {
        UNROLL for (int column = first_column; column < HEAD; column += LANES * 8) {
            const int valid = first + row < count ? max(min(a.width - column, 8), 0) : 0;
            if (a.aligned) {
                async_copy_16_zero_fill(to + column, valid ? from + column : head, valid * sizeof(bf16));
            } else {
                _Pragma("unroll 1") for (int i = 0; i < 8; i++) to[column + i] = i < valid ? from[column + i] : bf16{0};
            }
        }
        from += STEP * stride, to += STEP * PITCH;
    }
}

/// Starts the copy of VISIT numbers from `first` on, zeros from `count` on.
DEVICE void load_numbers(f32 *tile, const f32 *head, int first, int count) {
    for (int i = threadIdx.x; i < VISIT; i += THREADS) {
        if (first + i < count) async_copy_4(tile + i, head + first + i);
        else tile[i] = 0.0f;
    }
}

DEVICE u32 add_pairs(u32 a, u32 b) { return pack_bf16(low_bf16(a) + low_bf16(b), high_bf16(a) + high_bf16(b)); }

/// The warp's rows, each times its factor, become rows of a head or are added to them, `first` being the tile's first;
/// by way of `tile`, whose rows of this warp are free, so that global memory is written in whole rows.
DEVICE void store_tile(bf16 *head, i64 stride, int first, int count, const Attention &a, bool accumulate, bf16 *tile,
                       Fragments<HEAD> &rows, RowValues factor) {
    sync_warp(); // all lanes are done with what the tile held
    UNROLL for (int m = 0; m < M_TILES; m++)
        UNROLL for (int n = 0; n < HEAD / 8; n++)
            UNROLL for (int i = 0; i < 4; i += 2) {
                const f32(&x)[4] = rows.at[m][n], f = factor[m][i / 2];
                bf16 *to = tile + row_of(m, i) * PITCH + column_of(n, i);
                *reinterpret_cast<u32 *>(to) = pack_bf16(x[i] * f, x[i + 1] * f);
            }
    sync_warp();
    tile += warp_row() * PITCH, first += warp_row();
    constexpr int ROWS = M_TILES * 16;
    if (a.aligned) {
        for (int i = lane_index(); i < ROWS * (HEAD / 8); i += 32) {
            const int row = i / (HEAD / 8), column = i % (HEAD / 8) * 8;
            if (first + row >= count || column >= a.width) continue;
            uint4 *to = reinterpret_cast<uint4 *>(head + (first + row) * stride + column);
            uint4 x = *reinterpret_cast<const uint4 *>(tile + row * PITCH + column);
            if (accumulate) {
                x.x = add_pairs(to->x, x.x), x.y = add_pairs(to->y, x.y);
                x.z = add_pairs(to->z, x.z), x.w = add_pairs(to->w, x.w);
            }
            *to = x;
        }
    } else {
        for (int i = lane_index(); i < ROWS * HEAD; i += 32) {
            const int row = i / HEAD, column = i % HEAD;
            if (first + row >= count || column >= a.width) continue;
            bf16 *to = head + (first + row) * stride + column;
            const bf16 x = tile[row * PITCH + column];
            *to = accumulate ? round_to<bf16>(to_f32(*to) + to_f32(x)) : x;
        }
    }
}

// ---- products of a warp's rows

/// acc += a b^T: a, the warp's rows of a tile [OWN, HEAD]; b, a visited tile [VISIT, HEAD].
DEVICE void multiply_transposed(Fragments<VISIT> &acc, const bf16 *a, const bf16 *b) {
    const int lane = lane_index();
    a += (warp_row() + lane % 16) * PITCH + lane / 16 * 8;
    b += (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8;
    UNROLL for (int k = 0; k < HEAD; k += 16) {
        u32 rows[M_TILES][4];
        UNROLL for (int m = 0; m < M_TILES; m++) load_matrices_4(rows[m], a + m * 16 * PITCH + k);
        UNROLL for (int n = 0; n < VISIT / 8; n += 2) {
            u32 both[4];
            load_matrices_4(both, b + n * 8 * PITCH + k);
            const u32 left[2] = {both[0], both[1]}, right[2] = {both[2], both[3]};
            UNROLL for (int m = 0; m < M_TILES; m++) {
                multiply_16x8x16(acc.at[m][n], rows[m], left);
                multiply_16x8x16(acc.at[m][n + 1], rows[m], right);
            }
        }
    }
}

/// acc += p b: p, the warp's rows of scores [OWN, VISIT], rounded to bf16; b, a visited tile [VISIT, HEAD].
DEVICE void multiply(Fragments<HEAD> &acc, const Fragments<VISIT> &p, const bf16 *b) {
    const int lane = lane_index();
    b += lane % 16 * PITCH + lane / 16 * 8;
    UNROLL for (int k = 0; k < VISIT / 8; k += 2) {
        u32 rows[M_TILES][4];
        UNROLL for (int m = 0; m < M_TILES; m++)
            UNROLL for (int i = 0; i < 4; i++) {
                const f32(&x)[4] = p.at[m][k + i / 2];
                rows[m][i] = pack_bf16(x[i % 2 * 2], x[i % 2 * 2 + 1]);
            }
        UNROLL for (int n = 0; n < HEAD / 8; n += 2) {
            u32 both[4];
            load_matrices_4_transposed(both, b + k * 8 * PITCH + n * 8);
            const u32 left[2] = {both[0], both[1]}, right[2] = {both[2], both[3]};
            UNROLL for (int m = 0; m < M_TILES; m++) {
                multiply_16x8x16(acc.at[m][n], rows[m], left);
                multiply_16x8x16(acc.at[m][n + 1], rows[m], right);
            }
        }
    }
}
