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

enum class State : uint8_t { Ready, Barrier, Collective, Waiting, Done };

/// What a thread has learnt of the others through mbarriers and named barriers, for the checker (checker.cpp): the time
/// of each thread, the epoch of each warp, the phases of each mbarrier. Empty if nothing is checked.
using Clock = std::vector<uint32_t>;

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
    std::string awaited;                   // what it waits for in State::Waiting
    Clock clock;
    unsigned time = 1;   // releases so far
    unsigned stores = 0; // to shared memory so far, and those before the last fence_async
    unsigned fenced = 0;
};

/// A warp function that some lanes have reached.
struct Meeting {
    unsigned mask = 0, arrived = 0;
    void (*function)(unsigned mask, void **arguments) = nullptr;
};

/// An mbarrier; its 8 bytes hold a mark and its number.
struct Mbarrier {
    const uint64_t *place;
    unsigned arrivals, pending;
    int64_t bytes;       // expected and not yet landed
    unsigned phases = 0; // ended so far
    int unfenced;        // the thread that made it and has not fenced it yet, or -1
    Clock gathering, completed;
};

struct NamedBarrier {
    unsigned threads = 0, arrived = 0, generation = 0;
    Clock gathering, completed;
};

/// A copy under way that counts on an mbarrier: it lands at its start or at any later moment.
struct Load {
    /// 16 bytes, of which `valid` from `skip` on come from memory; the others are zeros.
    struct Piece {
        char *to;
        const char *from;
        unsigned skip, valid;
    };
    std::vector<Piece> pieces;
    size_t barrier;
};

/// The accumulators of products under way: the registers hold NaN until a wait names them.
struct Accumulator {
    float *registers[32];
    std::vector<float> values[32];
    unsigned group; // of the newest product
    unsigned collected = 0;
};

/// A product of a warp, the 16 rows of it that the warp owns.
struct Product {
    size_t n;
    const unsigned *a[32]; // registers, or null
    uint64_t a_described, b_described;
    bool b_mn_major, accumulate, made;
    float *registers; // of lane 0: which accumulator
    unsigned group;
};

struct Warp {
    std::vector<Product> products; // in order
    std::vector<Accumulator> accumulators;
    unsigned group = 0;            // groups closed so far
    size_t issued = 0;             // products so far
    std::vector<std::pair<const char *, size_t>> fenced; // registers of lane 0
    bool acquired = false;         // a lane has learnt something since the last warp-wide meeting
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
    std::vector<Mbarrier> mbarriers;
    NamedBarrier named[16];
    std::vector<Load> loads;                        // under way
    std::vector<std::vector<uint64_t>> product_log; // of each warpgroup: what its warps have to issue alike
    std::vector<unsigned> registers;                // of each warpgroup, once it has set them
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
/// Hands over to other threads until [`wake`].
void wait_for(const std::string &what);
/// Hands over to other threads that may run.
void yield();
void wake(Fiber &fiber);
/// Lets a copy land.
void land(size_t load);
/// Whether the current warp has products that nothing has waited for.
bool products_under_way();
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
/// A copy that counts on the mbarrier of this number has been started to, or has landed in, shared memory.
void check_load(const void *to, size_t bytes, size_t barrier);
void check_landed(const void *to, size_t bytes);
/// A product has been started that reads shared memory, or has been waited for.
void check_product(const void *from, size_t bytes, bool ended);
/// What the current thread knows goes into a clock; what a clock knows comes to the current thread, or to all of a mask.
void release(Clock &into);
void acquire(const Clock &from);
void merge_clocks(Fiber *first, unsigned count, unsigned mask);
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
