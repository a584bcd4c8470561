// Every function of prelude.cuh and tensor_cores.cuh that is one instruction on a GPU and something else in the emulator, on the same inputs: one warp,
// one row of 32 words for each result, in the order in which main.rs names them.
#include "tensor_cores.cuh"

/// The rows of results, filled one after another.
struct Rows {
    u32 *next;
    DEVICE void put(u32 word) {
        next[lane_index()] = word;
        next += 32;
    }
    DEVICE void put(f32 x) { put(bits_of(x)); }
    DEVICE void put(f64 x) {
        put((u32)bits_of(x));
        put((u32)(bits_of(x) >> 32));
    }
};

/// in: 32 words of any bits, 32 f32 of any bits, 32 moderate f32, then 32 * 8 words of pairs of moderate bf16; counters: 32 zeros;
/// moved: 32 * 4 words.
KERNEL(intrinsics, 32, u32 *out, const u32 *in, u32 *counters, u32 *moved) {
    SHARED(u32, tile, [32 * 8]);
    const u32 lane = lane_index(), other = (lane + 9) % 32;
    const u32 word = in[lane];
    const f32 any = f32_of_bits(in[32 + lane]), any_other = f32_of_bits(in[32 + other]);
    const f32 x = f32_of_bits(in[64 + lane]), y = f32_of_bits(in[64 + other]);
    const u32 *pairs = in + 96;
    Rows rows{out};

    rows.put((u32)bf16_bits(any));
    rows.put((u32)f16_bits(any));
    rows.put((u32)f16_bits(x));
    rows.put(to_f32(f16{(u16)word}));
    rows.put(to_f32(bf16{(u16)word}));
    rows.put(pack_bf16(any, any_other));
    rows.put(f64_to_f32_odd((f64)x * (f64)y));
    rows.put(max_nan(any, any_other));
    rows.put(min_nan(any, any_other));
    rows.put(fast_exp2(x * 8.0f));
    rows.put(fast_exp2(lane == 0 ? -F32_INFINITY : -140.0f));
    rows.put(fast_reciprocal(x));
    rows.put(multiply_rounded(x, y));
    rows.put(add_rounded(x, y));
    rows.put(multiply_rounded((f64)x, (f64)y * 1.1));
    rows.put(add_rounded((f64)x, (f64)y * 1e-9));
    rows.put(multiply_high(word, word * 2654435761u));

    rows.put(shuffle_xor(word, 5));
    rows.put(shuffle_from(word, 7));
    const u32 down = shuffle_down(word, 3), up = shuffle_up(word, 3);
    rows.put(lane < 29 ? down : 0);
    rows.put(lane >= 3 ? up : 0);
    rows.put(warp_sum(x));
    rows.put(warp_sum<4>(x));
    rows.put(warp_max(x));
    rows.put(atomic_add(counters + lane, 3));
    rows.put(counters[lane]);

    // Accesses of 16 bytes.
    store_once(moved + lane * 4, load_once(in + other * 4));
    sync_warp();
    const Pack<u32, 4> back = load_pack<4>(moved + lane * 4);
    UNROLL for (int i = 0; i < 4; i++) rows.put(back[i]);

    // Asynchronous copies: whole, partly zero, and single words.
    async_copy_16(tile + lane * 4, in + other * 4);
    async_copy_commit();
    async_copy_wait<0>();
    sync_block();
    UNROLL for (int i = 0; i < 4; i++) rows.put(tile[other * 4 + i]);
    sync_block();
    async_copy_16_zero_fill(tile + lane * 4, in + other * 4, lane % 17);
    async_copy_4(tile + 128 + lane, in + other);
    async_copy_commit();
    async_copy_wait<0>();
    sync_block();
    UNROLL for (int i = 0; i < 4; i++) rows.put(tile[other * 4 + i]);
    rows.put(tile[128 + other]);
    sync_block();

    // Matrix fragments: 32 rows of 16 bytes, four matrices of 8 x 8.
    UNROLL for (int i = 0; i < 8; i++) tile[i * 32 + lane] = pairs[i * 32 + lane];
    sync_block();
    u32 a[4], transposed[4], b[2], b_transposed[2];
    load_matrices_4(a, tile + lane * 4);
    load_matrices_4_transposed(transposed, tile + lane * 4);
    load_matrices_2(b, tile + 128 + lane % 16 * 4);
    load_matrices_2_transposed(b_transposed, tile + 128 + lane % 16 * 4);
    UNROLL for (int i = 0; i < 4; i++) rows.put(a[i]);
    UNROLL for (int i = 0; i < 4; i++) rows.put(transposed[i]);
    UNROLL for (int i = 0; i < 2; i++) rows.put(b[i]);
    UNROLL for (int i = 0; i < 2; i++) rows.put(b_transposed[i]);
    f32 d[4] = {x, y, 0.0f, 1.0f};
    multiply_16x8x16(d, a, b);
    UNROLL for (int i = 0; i < 4; i++) rows.put(d[i]);
}
