// What a kernel compiled for the host and the emulated driver know of each other. Plain C types, so that kernels compile fast.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct uint3 {
    unsigned x, y, z;
};

/// The place of the thread that runs.
struct EmulatedThread {
    uint3 thread, block, threads, blocks;
    unsigned lane, warp;
};

/// An entry point, as KERNEL declares it.
struct EmulatedEntry {
    const char *name;
    unsigned threads;            // the largest block
    void (*call)(void **arguments);
    unsigned parameters;
    const size_t *sizes;         // of the parameters
    void *kernel;                // passed to `call` as the last argument
};

extern "C" {
extern EmulatedThread *emulated_thread;

void emulated_register(const EmulatedEntry *entry);
[[noreturn]] void emulated_fail(const char *message);

void emulated_sync_block(const char *site);
void emulated_sync_warp(unsigned mask);
/// Replaces `size` bytes at `value` by those of lane `source` (its own if negative).
void emulated_shuffle(unsigned mask, void *value, size_t size, int source);
unsigned emulated_ballot(unsigned mask, int predicate);

/// Shared memory of the block that runs: that of a declaration, known by its key, or the launch's.
void *emulated_shared(const void *key, size_t bytes, const char *name);
void *emulated_dynamic_shared();

void emulated_aligned(const void *address, size_t bytes);
unsigned emulated_atomic_add(unsigned *counter, unsigned by);

void emulated_async_copy(void *to, const void *from, unsigned bytes, unsigned valid);
void emulated_async_commit();
void emulated_async_wait(unsigned pending);

void emulated_load_matrices(unsigned *out, const void *row, int count, bool transposed);
void emulated_multiply_16x8x16(float *d, const unsigned *a, const unsigned *b);

// sm_90a (hopper.cuh): mbarriers, named barriers, copies that count on an mbarrier, products of a warpgroup.
void emulated_mbarrier_init(uint64_t *barrier, unsigned arrivals);
void emulated_fence_mbarrier_init();
void emulated_mbarrier_arrive(uint64_t *barrier, unsigned expected_bytes);
void emulated_mbarrier_wait(uint64_t *barrier, unsigned parity);
void emulated_fence_async();
void emulated_named_barrier(unsigned name, unsigned threads, int wait);
void emulated_set_registers(unsigned count);
void emulated_tensor_load(void *to, const void *map, int rank, const int *at, uint64_t *barrier);
void emulated_bulk_load(void *to, const void *from, unsigned bytes, uint64_t *barrier);
/// The address of dynamic shared memory as descriptors hold it.
unsigned emulated_shared_address(const void *address);
/// `a`: registers, or null where a descriptor gives A.
void emulated_wgmma(float *d, int n, const unsigned *a, uint64_t a_described, uint64_t b_described, int b_mn_major, int accumulate);
void emulated_wgmma_fence();
void emulated_wgmma_fenced(const void *registers, size_t bytes);
void emulated_wgmma_commit();
void emulated_wgmma_wait(unsigned pending);
void emulated_wgmma_waited(void *registers, size_t bytes);

float emulated_f16_to_f32(uint16_t bits);
uint16_t emulated_f32_to_f16(float x);
}
