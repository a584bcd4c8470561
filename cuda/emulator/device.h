// CUDA C++ as the host's compiler sees it: the words of the language, the builtin types and variables, and the emulator's functions in
// the place of instructions. Included by prelude.cuh.
#pragma once
#include <math.h>
#include <string.h>

#include "abi.h"

#define DEVICE inline
#define UNROLL
#define ALIGNED(bytes) __attribute__((aligned(bytes)))
#define __forceinline__ inline
#define __device__
#define __restrict__ __restrict

#define EMULATED_TEXT_(x) #x
#define EMULATED_TEXT(x) EMULATED_TEXT_(x)

// Declared, told to the driver when the library is loaded, then defined by the body that follows.
#define KERNEL(name, threads, ...)                                                        \
    extern "C" void name(__VA_ARGS__);                                                    \
    static const emulated::Registration emulated_registration_##name(#name, threads, name); \
    extern "C" void name(__VA_ARGS__)
#define KERNEL_OCCUPANCY(name, threads, blocks, ...) KERNEL(name, threads, __VA_ARGS__)

#define SHARED(type, name, dimensions)                       \
    static const char emulated_key_##name = 0;               \
    typedef type emulated_type_##name dimensions;            \
    emulated_type_##name &name = *(emulated_type_##name *)emulated_shared(&emulated_key_##name, sizeof(emulated_type_##name), #name)
#define DYNAMIC_SHARED(type, name) type *name = (type *)emulated_dynamic_shared()
#define sync_block() emulated_sync_block(__FILE__ ":" EMULATED_TEXT(__LINE__))

#define threadIdx (emulated_thread->thread)
#define blockIdx (emulated_thread->block)
#define blockDim (emulated_thread->threads)
#define gridDim (emulated_thread->blocks)

#define EMULATED_VECTORS(T, name, bytes)                          \
    struct alignas(2 * bytes) name##2 { T x, y; };                \
    struct name##3 { T x, y, z; };                                \
    struct alignas(bytes > 4 ? 16 : 4 * bytes) name##4 { T x, y, z, w; }; \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }    \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTORS(float, float, 4)
EMULATED_VECTORS(int, int, 4)
EMULATED_VECTORS(double, double, 8)
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulated {
template <class T> T bits(const void *from) {
    T out;
    memcpy(&out, from, sizeof out);
    return out;
}

template <int... I> struct Numbers {};
template <int N, int... I> struct Count : Count<N - 1, N - 1, I...> {};
template <int... I> struct Count<0, I...> { typedef Numbers<I...> type; };
template <class T> struct Plain { typedef T type; };
template <class T> struct Plain<const T> { typedef T type; };

/// The function of each entry point, kept apart by its own type.
struct Registration {
    template <class... P> Registration(const char *name, unsigned threads, void (*kernel)(P...));
};
template <class... P> struct Call {
    template <int... I> static void unpack(void (*kernel)(P...), void **arguments, Numbers<I...>) {
        kernel(*(typename Plain<P>::type *)arguments[I]...);
    }
};
/// The driver passes the kernel itself behind the arguments.
template <class... P> void call(void **arguments) {
    auto kernel = (void (*)(P...))arguments[sizeof...(P)];
    Call<P...>::unpack(kernel, arguments, typename Count<sizeof...(P)>::type());
}
template <class... P> Registration::Registration(const char *name, unsigned threads, void (*kernel)(P...)) {
    static const size_t sizes[] = {sizeof(P)..., 0};
    emulated_register(new EmulatedEntry{name, threads, &call<P...>, sizeof...(P), sizes, (void *)kernel});
}
} // namespace emulated

constexpr int warpSize = 32;
inline void __syncthreads() { emulated_sync_block("__syncthreads"); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulated_sync_warp(mask); }
template <class T> T __shfl_sync(unsigned mask, T x, int source, int width = 32) {
    int lane = (int)emulated_thread->lane;
    emulated_shuffle(mask, &x, sizeof x, lane / width * width + (source & (width - 1)));
    return x;
}
template <class T> T __shfl_xor_sync(unsigned mask, T x, int lanes, int width = 32) {
    int lane = (int)emulated_thread->lane, source = lane ^ lanes;
    emulated_shuffle(mask, &x, sizeof x, source / width > lane / width ? -1 : source);
    return x;
}
template <class T> T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32) {
    int lane = (int)emulated_thread->lane;
    emulated_shuffle(mask, &x, sizeof x, lane % width + (int)by < width ? lane + (int)by : -1);
    return x;
}
template <class T> T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32) {
    int lane = (int)emulated_thread->lane;
    emulated_shuffle(mask, &x, sizeof x, lane % width >= (int)by ? lane - (int)by : -1);
    return x;
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return emulated_ballot(mask, predicate != 0); }
inline int __any_sync(unsigned mask, int predicate) { return emulated_ballot(mask, predicate != 0) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return emulated_ballot(mask, predicate != 0) == mask; }
inline void __threadfence() {}
inline void __threadfence_block() {}

inline unsigned __float_as_uint(float x) { return emulated::bits<unsigned>(&x); }
inline float __uint_as_float(unsigned x) { return emulated::bits<float>(&x); }
inline long long __double_as_longlong(double x) { return emulated::bits<long long>(&x); }
inline double __longlong_as_double(long long x) { return emulated::bits<double>(&x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
