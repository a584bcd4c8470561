// The ground that every kernel stands on: types, entry points, shared memory, and each GPU instruction behind one function.
//
// A function here has two bodies. On a GPU it is inline PTX or a compiler builtin; on the host it calls the emulator
// (emulator/device.h). Kernels include no NVIDIA header and use no intrinsic but these and CUDA's builtins: threadIdx and its
// kin, float4 and its kin, the math functions (expf, sqrtf, ...), __syncwarp, __threadfence.
//
//   KERNEL(scale, 256, f32 *out, const f32 *x, f32 factor, u32 n) { ... }
//
// declares the entry point `scale`, launched with at most 256 threads a block. SHARED and DYNAMIC_SHARED declare shared memory.
// Pointers of tensors are typed by macros that the launcher defines: `-DX=bf16` and, in the kernel, `const X *x`.
// PTX is that of the manual "Parallel Thread Execution ISA", 8.x; sm_80 is the oldest architecture.
#pragma once

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define ALIGNED(bytes) __align__(bytes)

/// An entry point: `threads` is the largest block it is launched with. The rest are its parameters.
#define KERNEL(name, threads, ...) extern "C" __global__ void __launch_bounds__(threads) name(__VA_ARGS__)
/// The same, with registers limited so that `blocks` blocks fit on a multiprocessor.
#define KERNEL_OCCUPANCY(name, threads, blocks, ...) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)

/// Shared memory of fixed size, 16-byte aligned: `SHARED(f32, tile, [32][33]);`, at the kernel's outermost level.
#define SHARED(type, name, dimensions) __shared__ __align__(16) type name dimensions
/// The shared memory whose size the launch gives, 1024-byte aligned: `DYNAMIC_SHARED(f32, row);` makes `f32 *row`. Once a kernel.
#define DYNAMIC_SHARED(type, name)                                          \
    extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[]; \
    type *name = reinterpret_cast<type *>(dynamic_shared_memory)

/// Waits for every thread of the block; makes shared and global writes before it visible to them after it.
#define sync_block() __syncthreads()
#else
#include "device.h"
#endif

// ---- bit patterns

DEVICE u32 bits_of(f32 x) { return __float_as_uint(x); }
DEVICE f32 f32_of_bits(u32 bits) { return __uint_as_float(bits); }
DEVICE u64 bits_of(f64 x) { return (u64)__double_as_longlong(x); }
DEVICE f64 f64_of_bits(u64 bits) { return __longlong_as_double((i64)bits); }

#define F32_INFINITY f32_of_bits(0x7f800000u)
#define F32_NAN f32_of_bits(0x7fffffffu)

// ---- 16-bit floats: storage and conversion; arithmetic is done in f32

/// bfloat16: the upper half of an f32.
struct ALIGNED(2) bf16 {
    u16 bits;
};

/// IEEE 754 half precision.
struct ALIGNED(2) f16 {
    u16 bits;
};

DEVICE f32 to_f32(f32 x) { return x; }
DEVICE f32 to_f32(bf16 x) { return f32_of_bits((u32)x.bits << 16); }
DEVICE f32 to_f32(f16 x) {
#ifdef __CUDACC__
    f32 out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
    return out;
#else
    return emulated_f16_to_f32(x.bits);
#endif
}

DEVICE u16 bf16_bits(f32 x) {
#ifdef __CUDACC__
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    u32 b = bits_of(x);
    return (b & 0x7fffffffu) > 0x7f800000u ? (u16)0x7fff : (u16)((b + 0x7fffu + (b >> 16 & 1)) >> 16);
#endif
}

DEVICE u16 f16_bits(f32 x) {
#ifdef __CUDACC__
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    return emulated_f32_to_f16(x);
#endif
}

/// An f32 rounded to `T`, to nearest even: `round_to<bf16>(x)`.
template <class T> struct Rounding;
template <> struct Rounding<f32> {
    static DEVICE f32 of(f32 x) { return x; }
};
template <> struct Rounding<bf16> {
    static DEVICE bf16 of(f32 x) { return bf16{bf16_bits(x)}; }
};
template <> struct Rounding<f16> {
    static DEVICE f16 of(f32 x) { return f16{f16_bits(x)}; }
};
template <class T> DEVICE T round_to(f32 x) { return Rounding<T>::of(x); }

/// The f32 nearest to x whose last bit tells that the conversion was inexact (round to odd): rounding it once more, to 16
/// bits, gives what rounding x itself would. Source: Boldo and Melquiond, "When double rounding is odd", 2005.
DEVICE f32 f64_to_f32_odd(f64 x) {
    f32 nearest = (f32)x;
    if ((f64)nearest == x || x != x) return nearest;
    u32 bits = bits_of(nearest);
    f64 magnitude = x < 0 ? -x : x, rounded = nearest < 0 ? -(f64)nearest : (f64)nearest;
    return f32_of_bits((rounded > magnitude ? bits - 1 : bits) | 1u);
}

/// Two bf16 in one register, the first in the low half, as mma and ldmatrix hold them.
DEVICE u32 pack_bf16(f32 low, f32 high) {
#ifdef __CUDACC__
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
#else
    return (u32)bf16_bits(low) | (u32)bf16_bits(high) << 16;
#endif
}
DEVICE f32 low_bf16(u32 pair) { return f32_of_bits(pair << 16); }
DEVICE f32 high_bf16(u32 pair) { return f32_of_bits(pair & 0xffff0000u); }

// ---- several elements in one access

/// N neighbours in memory, moved by one instruction of sizeof(T) * N = 2, 4, 8 or 16 bytes: the address must be a multiple of that.
template <class T, int N> struct alignas(sizeof(T) * N) Pack {
    T at[N];
    DEVICE T &operator[](int i) { return at[i]; }
    DEVICE const T &operator[](int i) const { return at[i]; }
};

/// How many elements of `T` one 16-byte access moves.
template <class T> constexpr int PACK_16 = 16 / (int)sizeof(T);

/// The register type of an access of so many bytes.
template <int BYTES> struct Word;
template <> struct Word<2> { typedef u16 type; };
template <> struct Word<4> { typedef u32 type; };
template <> struct Word<8> { typedef uint2 type; };
template <> struct Word<16> { typedef uint4 type; };

template <int N, class T> DEVICE Pack<T, N> load_pack(const T *from) {
    typedef typename Word<sizeof(T) * N>::type W;
#ifndef __CUDACC__
    emulated_aligned(from, sizeof(W));
#endif
    union {
        W word;
        Pack<T, N> pack;
    } both;
    both.word = *reinterpret_cast<const W *>(from);
    return both.pack;
}

template <class T, int N> DEVICE void store_pack(T *to, const Pack<T, N> &value) {
    typedef typename Word<sizeof(T) * N>::type W;
#ifndef __CUDACC__
    emulated_aligned(to, sizeof(W));
#endif
    union {
        W word;
        Pack<T, N> pack;
    } both;
    both.pack = value;
    *reinterpret_cast<W *>(to) = both.word;
}

/// A 16-byte load of global data that no thread reads again and no thread of this launch writes: it does not displace the L1 cache.
template <class T> DEVICE Pack<T, PACK_16<T>> load_once(const T *from) {
#ifdef __CUDACC__
    union {
        uint4 word;
        Pack<T, PACK_16<T>> pack;
    } both;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(both.word.x), "=r"(both.word.y), "=r"(both.word.z), "=r"(both.word.w)
                 : "l"(from));
    return both.pack;
#else
    return load_pack<PACK_16<T>>(from);
#endif
}

/// A 16-byte store of global data that is not read soon (evict first).
template <class T> DEVICE void store_once(T *to, const Pack<T, PACK_16<T>> &value) {
#ifdef __CUDACC__
    union {
        uint4 word;
        Pack<T, PACK_16<T>> pack;
    } both;
    both.pack = value;
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(both.word.x), "r"(both.word.y),
                 "r"(both.word.z), "r"(both.word.w)
                 : "memory");
#else
    store_pack(to, value);
#endif
}

/// Whether an address is a multiple of `bytes`.
DEVICE bool is_aligned(const void *address, u32 bytes) { return ((u64)address & (bytes - 1)) == 0; }

// ---- warps: 32 threads in step; every function here is called by all lanes of `mask` together

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

DEVICE u32 lane_index() { return threadIdx.x & 31; } // blocks are one-dimensional
DEVICE u32 warp_index() { return threadIdx.x >> 5; }

template <class T> DEVICE T shuffle_xor(T x, u32 lane_mask) { return __shfl_xor_sync(ALL_LANES, x, (int)lane_mask); }
template <class T> DEVICE T shuffle_down(T x, u32 by) { return __shfl_down_sync(ALL_LANES, x, by); }
template <class T> DEVICE T shuffle_up(T x, u32 by) { return __shfl_up_sync(ALL_LANES, x, by); }
template <class T> DEVICE T shuffle_from(T x, u32 lane) { return __shfl_sync(ALL_LANES, x, (int)lane); }
DEVICE void sync_warp() { __syncwarp(ALL_LANES); }

/// NaN if either is NaN, unlike fmaxf.
DEVICE f32 max_nan(f32 a, f32 b) {
#ifdef __CUDACC__
    f32 out;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
    return out;
#else
    return a != a || b != b ? F32_NAN : (a > b ? a : b);
#endif
}
DEVICE f32 min_nan(f32 a, f32 b) { return -max_nan(-a, -b); }

/// Sum over the lanes of each aligned group of `LANES`; every lane gets it. The order is a fixed tree.
template <int LANES = 32> DEVICE f32 warp_sum(f32 x) {
    UNROLL for (int distance = LANES / 2; distance > 0; distance /= 2) x += shuffle_xor(x, distance);
    return x;
}

/// Maximum over the lanes of each aligned group of `LANES`; NaN if any is.
template <int LANES = 32> DEVICE f32 warp_max(f32 x) {
    UNROLL for (int distance = LANES / 2; distance > 0; distance /= 2) x = max_nan(x, shuffle_xor(x, distance));
    return x;
}

/// Sum over a block of `THREADS` threads (a multiple of 32, at most 1024), in a fixed order; every thread gets it. `scratch`: 32 floats
/// of shared memory, free again when the function returns.
template <int THREADS> DEVICE f32 block_sum(f32 x, f32 *scratch) {
    static_assert(THREADS % 32 == 0 && THREADS <= 1024, "whole warps, at most 32 of them");
    x = warp_sum(x);
    if (THREADS == 32) return x;
    if (lane_index() == 0) scratch[warp_index()] = x;
    sync_block();
    x = warp_sum(lane_index() < THREADS / 32 ? scratch[lane_index()] : 0.0f);
    sync_block(); // scratch has been read
    return x;
}

/// Maximum over a block, as [`block_sum`].
template <int THREADS> DEVICE f32 block_max(f32 x, f32 *scratch) {
    static_assert(THREADS % 32 == 0 && THREADS <= 1024, "whole warps, at most 32 of them");
    x = warp_max(x);
    if (THREADS == 32) return x;
    if (lane_index() == 0) scratch[warp_index()] = x;
    sync_block();
    x = warp_max(lane_index() < THREADS / 32 ? scratch[lane_index()] : -F32_INFINITY);
    sync_block();
    return x;
}

// ---- fast approximate functions, for where the error is argued; else use expf, logf, tanhf, ...

/// 2^x, relative error 2^-22; subnormal results become 0.
DEVICE f32 fast_exp2(f32 x) {
#ifdef __CUDACC__
    f32 out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
#else
    return exp2f(x);
#endif
}

/// 1 / x, at most 1 ulp.
DEVICE f32 fast_reciprocal(f32 x) {
#ifdef __CUDACC__
    f32 out;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
#else
    return 1.0f / x;
#endif
}

/// Products and sums rounded on their own, never fused: where results must equal the CPU's.
DEVICE f64 multiply_rounded(f64 a, f64 b) {
#ifdef __CUDACC__
    f64 out;
    asm("mul.rn.f64 %0, %1, %2;" : "=d"(out) : "d"(a), "d"(b));
    return out;
#else
    return a * b;
#endif
}
DEVICE f64 add_rounded(f64 a, f64 b) {
#ifdef __CUDACC__
    f64 out;
    asm("add.rn.f64 %0, %1, %2;" : "=d"(out) : "d"(a), "d"(b));
    return out;
#else
    return a + b;
#endif
}
DEVICE f32 multiply_rounded(f32 a, f32 b) {
#ifdef __CUDACC__
    f32 out;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
    return out;
#else
    return a * b;
#endif
}
DEVICE f32 add_rounded(f32 a, f32 b) {
#ifdef __CUDACC__
    f32 out;
    asm("add.rn.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
    return out;
#else
    return a + b;
#endif
}

/// The upper 32 bits of a product, as Philox takes them.
DEVICE u32 multiply_high(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }

// ---- integers shared by blocks

/// Adds to a counter in global memory and gives what it held: for "the last block finishes". Never used on floats.
DEVICE u32 atomic_add(u32 *counter, u32 by) {
#ifdef __CUDACC__
    return atomicAdd(counter, by);
#else
    return emulated_atomic_add(counter, by);
#endif
}
/// Makes this thread's global writes visible to the device before what follows.
DEVICE void device_fence() { __threadfence(); }

// ---- asynchronous copies from global to shared memory (sm_80): issued, closed into groups, waited for by group

#ifdef __CUDACC__
DEVICE u32 shared_address(const void *pointer) { return (u32)__cvta_generic_to_shared(pointer); }
#endif

/// Starts a copy of 16 bytes; both addresses 16-byte aligned. Readable after [`async_copy_wait`] and, by other threads, a barrier.
DEVICE void async_copy_16(void *to_shared, const void *from_global) {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to_shared)), "l"(from_global) : "memory");
#else
    emulated_async_copy(to_shared, from_global, 16, 16);
#endif
}

/// As [`async_copy_16`], but only the first `valid` bytes (0..=16) are read; the rest become zero.
DEVICE void async_copy_16_zero_fill(void *to_shared, const void *from_global, u32 valid) {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)), "l"(from_global), "r"(valid)
                 : "memory");
#else
    emulated_async_copy(to_shared, from_global, 16, valid);
#endif
}

/// As [`async_copy_16`] with 4 bytes, 4-byte aligned.
DEVICE void async_copy_4(void *to_shared, const void *from_global) {
#ifdef __CUDACC__
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to_shared)), "l"(from_global) : "memory");
#else
    emulated_async_copy(to_shared, from_global, 4, 4);
#endif
}

/// Closes this thread's copies since the last call into a group (which may be empty).
DEVICE void async_copy_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emulated_async_commit();
#endif
}

/// Waits until at most `PENDING` of this thread's newest groups are under way.
template <int PENDING> DEVICE void async_copy_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#else
    emulated_async_wait(PENDING);
#endif
}

// ---- views: shapes and strides, passed by value

constexpr int MAX_RANK = 8;

/// Where the elements of `N` operands of one shape lie, in elements from each operand's own pointer (Rust: `Strided`). Dimensions that
/// are one run of addresses in all operands have been merged, and rank is at least 1. Counted in packs (Rust: `Strided::in_packs`), the last
/// dimension's entries are packs, and an operand's stride there is the pack, or 0 if it repeats one element.
template <int N> struct Strided {
    u64 count; // product of the shape
    u64 rank;
    u64 shape[MAX_RANK];
    u64 strides[N][MAX_RANK];

    /// The operands' offsets of the entry with row-major number `index`. Divisions take fewer instructions where `Index` is u32.
    template <class Index> DEVICE void locate(Index index, u64 (&offsets)[N]) const {
        UNROLL for (int n = 0; n < N; n++) offsets[n] = 0;
        UNROLL for (int d = MAX_RANK - 1; d >= 0; d--) {
            if (d >= (int)rank) continue;
            Index size = (Index)shape[d], rest = d == 0 ? 0 : index / size, at = index - rest * size;
            UNROLL for (int n = 0; n < N; n++) offsets[n] += (u64)at * strides[n][d];
            index = rest;
        }
    }

    /// Whether operand `n` repeats one element along the last dimension.
    DEVICE bool repeats(int n) const {
        u64 stride = 0;
        UNROLL for (int d = 0; d < MAX_RANK; d++) stride = d + 1 == (int)rank ? strides[n][d] : stride;
        return stride == 0;
    }
};
