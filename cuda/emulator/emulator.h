// The engine's inside: blocks of fibers under a schedule, and the checker of their memory accesses.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "abi.h"

#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ASAN 1
#else
#define EMULATOR_ASAN 0
#endif

namespace emulator {

/// A generator of which every schedule has its own (xorshift64*).
struct Random {
    uint64_t state;
    explicit Random(uint64_t seed) : state((seed + 1) * 0x9E3779B97F4A7C15ull | 1) {
        for (int i = 0; i < 8; i++) next();
    }
    uint64_t next() {
        state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
        return state * 0x2545F4914F6CDD1Dull;
    }
    /// One of 0..n.
    unsigned below(unsigned n) { return (unsigned)((next() >> 32) * n >> 32); }
    bool coin() { return next() >> 63; }
};

struct Launch {
    const EmulatedEntry *entry;
    uint3 blocks, threads;
    size_t dynamic_shared;
    std::vector<void *> arguments;
    uint64_t seed;
};

/// Runs a launch to its end; an empty string, or what went wrong and where.
std::string run(const Launch &launch);

enum class State : uint8_t { Ready, Barrier, Collective, Done };

/// A started asynchronous copy: made at once or at the wait, as the schedule chooses.
struct Copy {
    void *to;
    const void *from;
    unsigned bytes, valid;
    bool made;
};

struct Fiber {
    EmulatedThread place;
    State state = State::Ready;
    void *stack_pointer = nullptr;
    char *stack = nullptr; // null before the first instruction
    const char *site = nullptr;
    void *fake_stack = nullptr; // AddressSanitizer's
    std::vector<Copy> open;                // not yet in a group
    std::vector<std::vector<Copy>> groups; // oldest first
};

/// A warp function that some lanes have reached.
struct Meeting {
    unsigned mask = 0, arrived = 0;
    void (*function)(unsigned mask, void **arguments) = nullptr;
};

struct Warp {
    void *arguments[32];
    Meeting meetings[32]; // by the lowest lane of the mask
    unsigned exited = 0, ready = 0;
    unsigned epoch = 0; // number of warp-wide meetings so far
};

/// A SHARED declaration's place in the arena.
struct SharedVariable {
    const void *key;
    const char *name;
    size_t offset, bytes;
};

/// The block that runs. There is one at a time in a process.
struct Block {
    const Launch *launch = nullptr;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Fiber *current = nullptr;
    unsigned alive = 0, ready = 0, waiting = 0;
    unsigned epoch = 0; // number of barriers passed
    unsigned index = 0; // row-major number of the block
    char *shared = nullptr; // arena of static shared memory, then the dynamic part
    char *dynamic = nullptr;
    std::vector<SharedVariable> variables;
    size_t static_used = 0;
    Random random{0};
    std::string error;
    bool aborted = false;
};
extern Block block;

constexpr size_t SHARED_BYTES = 227 << 10; // of both kinds together, on the largest device
constexpr size_t STATIC_ARENA = 256 << 10; // with the gaps between variables
constexpr size_t STACK_BYTES = EMULATOR_ASAN ? 512 << 10 : 128 << 10;

/// All lanes of `mask` meet; the last runs `function` over the arguments of all.
void meet(unsigned mask, void (*function)(unsigned, void **), void *argument);
/// Ends the launch with a message; does not return to the kernel.
[[noreturn]] void fail(const std::string &message);
/// Where an address lies, in words.
std::string describe(const void *address);

// ---- the checker (checker.cpp): active where kernels are compiled with instrumented loads and stores

bool checking();
void check_launch(const Launch &launch);
void check_block();
/// A read or write by the current thread, from the code at `site`.
void check_access(const void *address, size_t bytes, bool write, const void *site);
/// An asynchronous copy has been started to, or has ended in, shared memory.
void check_async(const void *to, size_t bytes, bool ended);
/// A block has added to a counter, which orders it after the blocks that did so before.
void check_atomic(const void *counter);

// ---- device memory (memory.cpp)

struct Region {
    char *begin = nullptr;
    size_t bytes = 0;
    std::vector<struct Cell> *cells = nullptr; // the checker's
};
/// The live allocation that holds the address, or null.
Region *region_of(const void *address);
/// Whether the address lies in the range that device memory is taken from.
bool in_device_memory(const void *address);
/// Says that memory has been written by something other than a kernel.
void mark_initialised(const void *address, size_t bytes);
void forget_cells(Region &region);

} // namespace emulator
