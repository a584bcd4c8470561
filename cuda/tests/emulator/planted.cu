// A kernel with places for mistakes: MISTAKE is the number of the one that is made, 0 for none. A block of 128 threads takes a row of 256 elements,
// brings its halves to shared memory by asynchronous copies, and writes x * rstd of the row, rotated by one place within a half.
#include "prelude.cuh"

KERNEL(planted, 128, f32 *out, const f32 *x, f32 *scratch, u32 rows) {
    SHARED(f32, tile, [2][128]);
    SHARED(f32, partial, [4]);
    const f32 *row = x + (u64)blockIdx.x * 256;
    u32 i = threadIdx.x;
    for (u32 half = 0; half < 2; half++) {
        async_copy_4(&tile[half][i], row + half * 128 + i);
        async_copy_commit();
    }
    async_copy_wait<MISTAKE == 1 ? 1 : 0>(); // 1: one group too many may be under way
    if (MISTAKE != 2) sync_block();          // 2: neighbours' copies are read without a barrier

    f32 a = tile[0][(i + 1) % 128], b = tile[1][(i + 1) % 128];
    f32 sum = warp_sum(a * a + b * b);
    if (lane_index() == 0 && !(MISTAKE == 3 && i == 0)) partial[warp_index()] = sum; // 3: one is never written
    if (MISTAKE != 4) sync_block();                                                  // 4: partial sums are read too early
    f32 total = partial[0] + partial[1] + partial[2] + partial[3];
    if (MISTAKE != 5) sync_block(); // 5: partial sums are overwritten while others read them
    if (lane_index() == 0) partial[warp_index()] = rsqrtf(total / 256);
    sync_block();
    f32 rstd = partial[(warp_index() + 1) % 4];

    if (MISTAKE == 6 && i == 5) return; // 6: a thread does not reach the barrier
    if (MISTAKE == 7) {                 // 7: threads wait at different barriers
        if (i < 64) sync_block();
        else
            sync_block();
    }
    sync_block();
    if (MISTAKE == 8 && lane_index() < 16) a = shuffle_xor(a, 1); // 8: the mask names lanes that do not come
    f32 *to = out + (u64)blockIdx.x * 256 + i;
    if (MISTAKE == 9) { // 9: four elements at an address that is no multiple of 16 bytes
        Pack<f32, 4> four = load_pack<4>(row + 1);
        a += four[0] * 0;
    }
    to[0] = a * rstd;
    to[MISTAKE == 10 ? 129 : 128] = b * rstd;               // 10: beyond the row, and at the end beyond the tensor
    if (MISTAKE == 11) scratch[i] = tile[1][i + 1];         // 11: beyond a shared array
    if (MISTAKE == 12) scratch[0] = a;                      // 12: every thread writes one element
    if (MISTAKE == 13 && i == 0) scratch[0] = a;            // 13: every block writes one element
    if (MISTAKE == 14 && i == 0) scratch[blockIdx.x] = scratch[blockIdx.x + rows]; // 14: nothing has been written there
    if (MISTAKE == 15) {                                    // 15: beyond a thread's own array
        f32 own[4] = {a, b, a, b};
        volatile u32 at = 4 + i % 2;
        scratch[blockIdx.x * 128 + i] = own[at];
    }
}
