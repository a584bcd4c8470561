// The instructions of sm_90a: mbarriers, bulk and tensor copies (TMA), products of a warpgroup (wgmma), registers moved
// between warpgroups, named barriers. As in prelude.cuh each function has two bodies, inline PTX and the emulator's.
//
// Copies and products run beside the threads that start them. What orders them:
//   - a copy into shared memory counts its bytes on an mbarrier; who waits for the phase may read them;
//   - a product reads its operands between its start and the wgmma_wait that covers it; until then neither its shared
//     memory nor its registers are touched, and only registers that this wait names hold the result;
//   - shared memory written by ordinary stores is read by a copy or a product only after fence_async() in the threads
//     that wrote and a barrier; mbarriers are used by copies only after fence_mbarrier_init() and a barrier.
// Sources: PTX ISA 8.x, "Asynchronous Warpgroup Level Matrix Instructions", "Tensors", "mbarrier"; descriptors beside
// CUTLASS, include/cute/arch/mma_sm90_desc.hpp and include/cute/atom/mma_traits_sm90_gmma.hpp.
#pragma once
#include "prelude.cuh"

// ---- mbarriers: 8 bytes of shared memory that count arrivals and bytes; a phase ends when none of either is missing

/// Before any use, by one thread; `arrivals` end a phase.
DEVICE void mbarrier_init(u64 *barrier, u32 arrivals) {
#ifdef __CUDACC__
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#else
    emulated_mbarrier_init((uint64_t *)barrier, arrivals);
#endif
}

/// Makes this thread's mbarrier_init visible to copies; other threads need a barrier besides.
DEVICE void fence_mbarrier_init() {
#ifdef __CUDACC__
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
    emulated_fence_mbarrier_init();
#endif
}

/// One arrival; orders what this thread did before it before what follows a wait for the phase.
DEVICE void mbarrier_arrive(u64 *barrier) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#else
    emulated_mbarrier_arrive((uint64_t *)barrier, 0);
#endif
}

/// One arrival, and the phase waits for so many more bytes of copies.
DEVICE void mbarrier_arrive_expect(u64 *barrier, u32 bytes) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
#else
    emulated_mbarrier_arrive((uint64_t *)barrier, bytes);
#endif
}

/// Waits for the end of the phase of this parity: phases are numbered from 0, and the one before the first counts as
/// ended, so that a wait for parity 1 on a fresh mbarrier returns at once.
DEVICE void mbarrier_wait(u64 *barrier, u32 parity) {
#ifdef __CUDACC__
    u32 done;
    do {
        asm volatile("{\n.reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(shared_address(barrier)), "r"(parity)
                     : "memory");
    } while (!done);
#else
    emulated_mbarrier_wait((uint64_t *)barrier, parity);
#endif
}

/// A place in a ring of LENGTH stages, and the parity of the phase that its mbarriers are in.
template <int LENGTH> struct RingPlace {
    int stage = 0;
    u32 parity = 0;
    DEVICE void advance() {
        if (++stage == LENGTH) stage = 0, parity ^= 1;
    }
};

/// Makes this thread's ordinary stores to shared memory visible to copies and products, which start after a barrier.
DEVICE void fence_async() {
#ifdef __CUDACC__
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    emulated_fence_async();
#endif
}

// ---- named barriers: 1 to 15; barrier 0 is sync_block's

/// Waits until `threads` threads (whole warps) have come to barrier `name`, by this or by named_barrier_arrive.
DEVICE void named_barrier_sync(u32 name, u32 threads) {
#ifdef __CUDACC__
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
#else
    emulated_named_barrier(name, threads, true);
#endif
}

/// Comes to the barrier without waiting.
DEVICE void named_barrier_arrive(u32 name, u32 threads) {
#ifdef __CUDACC__
    asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
#else
    emulated_named_barrier(name, threads, false);
#endif
}

// ---- warpgroups: four warps, the first a multiple of four

constexpr int WARPGROUP = 128;
DEVICE u32 warpgroup_index() { return threadIdx.x / WARPGROUP; }

/// Gives registers of this warpgroup back, down to COUNT a thread (24 to 256, a multiple of 8).
template <int COUNT> DEVICE void give_registers() {
#ifdef __CUDACC__
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#else
    emulated_set_registers(COUNT);
#endif
}

/// Waits for registers that others give back, up to COUNT a thread.
template <int COUNT> DEVICE void take_registers() {
#ifdef __CUDACC__
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#else
    emulated_set_registers(COUNT);
#endif
}

// ---- copies into shared memory by one thread

/// Where a tensor lies and the box of it that a copy moves: `TensorMap` in src/tensor_map.rs, from
/// cuTensorMapEncodeTiled. A kernel's parameter: `const GRID_CONSTANT TensorMap q`.
struct ALIGNED(128) TensorMap {
    u64 opaque[16];
};
#ifdef __CUDACC__
#define GRID_CONSTANT __grid_constant__
#else
#define GRID_CONSTANT
#endif

/// Starts the copy of the box whose first element is [z, y, x, column]; zeros outside the tensor, and they count among
/// the bytes. Under the 128-byte swizzle rows of the box are 128 bytes, and `to` is a multiple of 1024.
DEVICE void tensor_load(void *to, const TensorMap &map, i32 column, i32 x, i32 y, i32 z, u64 *barrier) {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(barrier)), "r"(column), "r"(x), "r"(y), "r"(z)
                 : "memory");
#else
    const int at[4] = {column, x, y, z};
    emulated_tensor_load(to, &map, 4, at, (uint64_t *)barrier);
#endif
}

/// The same of a matrix: the box at [row, column].
DEVICE void tensor_load(void *to, const TensorMap &map, i32 column, i32 row, u64 *barrier) {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(barrier)), "r"(column), "r"(row)
                 : "memory");
#else
    const int at[2] = {column, row};
    emulated_tensor_load(to, &map, 2, at, (uint64_t *)barrier);
#endif
}

/// Starts the copy of `bytes` neighbouring bytes; both addresses and the number are multiples of 16.
DEVICE void bulk_load(void *to, const void *from, u32 bytes, u64 *barrier) {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
#else
    emulated_bulk_load(to, from, bytes, (uint64_t *)barrier);
#endif
}

// ---- tiles of bf16 in shared memory, as copies with the 128-byte swizzle write them and products read them
//
// A tile [ROWS, columns] lies in panels of 64 columns, one copy each: a panel is ROWS rows of 128 bytes from a multiple
// of 1024 on, and within a row 16-byte unit u lies at u ^ (row % 8).

constexpr int PANEL = 64;

/// Place of an element in a tile of ROWS rows, in elements.
template <int ROWS> DEVICE int swizzled(int row, int column) {
    const int unit = column % PANEL / 8 ^ row % 8;
    return column / PANEL * (ROWS * PANEL) + row * PANEL + unit * 8 + column % 8;
}

/// Which dimension of an operand is contiguous: that of the sum (K), or rows of A and columns of B (MN).
enum class Major { K = 0, MN = 1 };

/// A descriptor of operand memory under the 128-byte swizzle. Addresses and offsets are in units of 16 bytes, 14 bits
/// each: bits 0 to 13 the address, 16 to 29 the leading offset, 32 to 45 the stride offset, 62 and 63 the swizzle (1).
///   K-major:  the stride offset leads from 8 rows to the next 8; the leading offset is unused, 1 by convention.
///   MN-major: the stride offset leads from 8 steps of K to the next 8, the leading offset from one panel to the next.
/// In both cases groups of 8 rows of a panel are 1024 bytes apart.
DEVICE u64 describe(const void *first, u32 leading_bytes) {
#ifdef __CUDACC__
    const u32 address = shared_address(first);
#else
    const u32 address = emulated_shared_address(first);
#endif
    return (u64)(address >> 4 & 0x3fff) | (u64)(leading_bytes >> 4 & 0x3fff) << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}

/// The operand's rows from `row` (a multiple of 8) and columns from `column` (of 16) on, K along columns. One step of K
/// is 16 columns: 32 bytes further in the panel.
template <int ROWS> DEVICE u64 k_major(const bf16 *tile, int row, int column) {
    return describe(tile + column / PANEL * (ROWS * PANEL) + row * PANEL, 16) + column % PANEL / 8;
}

/// The operand's columns from 0 on, K along rows, from `row` on (a multiple of 16).
template <int ROWS> DEVICE u64 mn_major(const bf16 *tile, int row) {
    return describe(tile + row * PANEL, ROWS * PANEL * sizeof(bf16));
}

// ---- products of a warpgroup: D [64, N] in registers, A [64, 16] in shared memory or registers, B [16, N] in shared
// memory; bf16 with f32 accumulation
//
// With warp w of the warpgroup, g = lane / 4 and t = lane % 4, D's element d[n * 4 + i] is row 16 w + g + i / 2 * 8,
// column 8 n + 2 t + i % 2. A in registers is that of multiply_16x8x16 for the warp's 16 rows, so that two groups of
// columns of D, n = 2 k and 2 k + 1, packed in pairs are A's step k.

#ifdef __CUDACC__
#define WGMMA_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_F8(i) WGMMA_F4(i), WGMMA_F4(i + 4)
#define WGMMA_F32 WGMMA_F8(0), WGMMA_F8(8), WGMMA_F8(16), WGMMA_F8(24)
#define WGMMA_F40 WGMMA_F32, WGMMA_F8(32)
#define WGMMA_F48 WGMMA_F40, WGMMA_F8(40)
#define WGMMA_F56 WGMMA_F48, WGMMA_F8(48)
#define WGMMA_F64 WGMMA_F56, WGMMA_F8(56)
#define WGMMA_D32                                                                                                  \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_D40 WGMMA_D32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_D48 WGMMA_D40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_D56 WGMMA_D48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_D64 WGMMA_D56 ", %56, %57, %58, %59, %60, %61, %62, %63"

template <int N> struct Wgmma;
// D's registers are operands 0 to COUNT - 1; P0 to P6 are the numbers COUNT to COUNT + 6.
#define WGMMA_SHAPE(N, COUNT, P0, P1, P2, P3, P4, P5, P6)                                                           \
    template <> struct Wgmma<N> {                                                                                   \
        template <Major B> static DEVICE void shared(f32 (&d)[COUNT], u64 a, u64 b, int accumulate) {               \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P2 ", 0;\n"                                         \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_D##COUNT                 \
                         "}, %" #P0 ", %" #P1 ", p, 1, 1, 0, %" #P3 ";\n}"                                          \
                         : WGMMA_F##COUNT                                                                           \
                         : "l"(a), "l"(b), "r"(accumulate), "n"((int)B));                                           \
        }                                                                                                           \
        template <Major B> static DEVICE void registers(f32 (&d)[COUNT], const u32 (&a)[4], u64 b, int accumulate) { \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P5 ", 0;\n"                                         \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_D##COUNT                 \
                         "}, {%" #P0 ", %" #P1 ", %" #P2 ", %" #P3 "}, %" #P4 ", p, 1, 1, %" #P6 ";\n}"             \
                         : WGMMA_F##COUNT                                                                           \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"((int)B));       \
        }                                                                                                           \
    };
WGMMA_SHAPE(64, 32, 32, 33, 34, 35, 36, 37, 38)
WGMMA_SHAPE(80, 40, 40, 41, 42, 43, 44, 45, 46)
WGMMA_SHAPE(96, 48, 48, 49, 50, 51, 52, 53, 54)
WGMMA_SHAPE(112, 56, 56, 57, 58, 59, 60, 61, 62)
WGMMA_SHAPE(128, 64, 64, 65, 66, 67, 68, 69, 70)
#endif

/// Starts D = A B, or D += A B; A and B by descriptors, A K-major. All threads of the warpgroup together.
template <int N, Major B> DEVICE void wgmma(f32 (&d)[N / 2], u64 a, u64 b, bool accumulate) {
#ifdef __CUDACC__
    Wgmma<N>::template shared<B>(d, a, b, accumulate);
#else
    emulated_wgmma(d, N, nullptr, a, b, B == Major::MN, accumulate);
#endif
}

/// The same with A in registers.
template <int N, Major B> DEVICE void wgmma(f32 (&d)[N / 2], const u32 (&a)[4], u64 b, bool accumulate) {
#ifdef __CUDACC__
    Wgmma<N>::template registers<B>(d, a, b, accumulate);
#else
    emulated_wgmma(d, N, a, 0, b, B == Major::MN, accumulate);
#endif
}

/// Keeps the compiler from moving accesses of these registers across this place.
template <int N> DEVICE void hold(f32 (&registers)[N]) {
#ifdef __CUDACC__
    UNROLL for (int i = 0; i < N; i++) asm volatile("" : "+f"(registers[i])::"memory");
#endif
}
template <int N> DEVICE void hold(u32 (&registers)[N]) {
#ifdef __CUDACC__
    UNROLL for (int i = 0; i < N; i++) asm volatile("" : "+r"(registers[i])::"memory");
#endif
}
template <int N, int M> DEVICE void hold(u32 (&registers)[N][M]) {
    UNROLL for (int i = 0; i < N; i++) hold(registers[i]);
}

/// Before products: what threads did to the registers named, D and A of those products, comes first. Needed wherever
/// they have been touched since their last product.
template <class... Registers> DEVICE void wgmma_fence(Registers &...registers) {
#ifdef __CUDACC__
    (hold(registers), ...);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    emulated_wgmma_fence();
    (emulated_wgmma_fenced(&registers, sizeof registers), ...);
#endif
}

/// Closes the products since the last call into a group.
DEVICE void wgmma_commit() {
#ifdef __CUDACC__
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    emulated_wgmma_commit();
#endif
}

/// Waits until at most PENDING of the newest groups are under way. The accumulators named are those that are used next.
template <int PENDING, class... Registers> DEVICE void wgmma_wait(Registers &...registers) {
#ifdef __CUDACC__
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    (hold(registers), ...);
#else
    emulated_wgmma_wait(PENDING);
    (emulated_wgmma_waited(&registers, sizeof registers), ...);
#endif
}
