// mbarriers, named barriers, and copies that count on an mbarrier: tensor maps as the driver makes them, boxes as TMA moves them.
#include <cstring>

#include "driver.h"

namespace emulator {

namespace {

// ---- mbarriers

constexpr uint64_t MARK = 0x6d62617272ull << 24; // in the upper bits of an mbarrier's 8 bytes; below it the number

size_t number_of(const uint64_t *barrier) {
    const char *p = (const char *)barrier;
    if (p < block.shared || p + 8 > block.dynamic + SHARED_BYTES) fail("an mbarrier outside shared memory: " + describe(barrier));
    uint64_t number = *barrier ^ MARK;
    if (number >= block.mbarriers.size() || block.mbarriers[number].place != barrier)
        fail("an mbarrier is used before mbarrier_init, or has been overwritten: " + describe(barrier));
    return number;
}

std::string name(const Mbarrier &barrier) { return "the mbarrier at " + describe(barrier.place); }

void end_phase(Mbarrier &barrier) {
    if (barrier.pending || barrier.bytes) return;
    barrier.phases++;
    barrier.pending = barrier.arrivals;
    if (checking()) {
        if (barrier.completed.size() < barrier.gathering.size()) barrier.completed.resize(barrier.gathering.size());
        for (size_t i = 0; i < barrier.gathering.size(); i++)
            if (barrier.completed[i] < barrier.gathering[i]) barrier.completed[i] = barrier.gathering[i];
        // The end of the phase itself is known to who waits for it.
        size_t place = block.fibers.size() + block.warps.size() + (size_t)(&barrier - block.mbarriers.data());
        if (barrier.completed.size() <= place) barrier.completed.resize(place + 1);
        barrier.completed[place] = barrier.phases;
    }
    std::string waiting = name(barrier);
    for (Fiber &fiber : block.fibers)
        if (fiber.state == State::Waiting && fiber.awaited == waiting) wake(fiber);
}

// ---- tensor maps

/// What the emulator keeps in the 128 bytes of a CUtensorMap.
struct TensorMap {
    static constexpr uint64_t KIND = 0x70616d726f736e65ull;
    uint64_t kind;
    const char *address;
    uint64_t strides[4]; // of dimensions 1 and up, in bytes
    uint32_t sizes[5];   // less 1
    uint16_t box[5];
    uint8_t rank, element, swizzle; // swizzle: bytes of a row, or 0
};
static_assert(sizeof(TensorMap) <= 128, "a CUtensorMap has 128 bytes");

/// Bits 4 to 6 of an address by bits 7 to 9, fewer of them for swizzles of fewer bytes. Source: PTX ISA, "Swizzling Modes".
size_t swizzled(size_t address, unsigned swizzle) { return swizzle ? address ^ (address >> 7 & (swizzle / 16 - 1)) << 4 : address; }

void check_destination(void *to, size_t bytes, size_t alignment) {
    const char *p = (const char *)to;
    if (p < block.shared || p >= block.dynamic + SHARED_BYTES) fail("a copy to memory that is not shared: " + describe(to));
    if ((size_t)(p - block.shared) % alignment) fail("a copy to " + describe(to) + ", which is no multiple of " + std::to_string(alignment) + " bytes");
    bool inside = p >= block.dynamic && p + bytes <= block.dynamic + block.launch->dynamic_shared;
    for (SharedVariable &variable : block.variables) {
        const char *begin = block.shared + variable.offset;
        inside |= p >= begin && p + bytes <= begin + variable.bytes;
    }
    if (!inside) fail("a copy of " + std::to_string(bytes) + " bytes to " + describe(to));
}

void check_source(const char *from, size_t bytes) {
    Region *region = region_of(from);
    if (!region || from + bytes > region->begin + region->bytes)
        fail("a copy of " + std::to_string(bytes) + " bytes from " + describe(from));
    if (checking()) check_access(from, bytes, false, nullptr);
}

void start(Load load) {
    Mbarrier &barrier = block.mbarriers[load.barrier];
    if (barrier.unfenced >= 0)
        fail("a copy counts on " + name(barrier) + ", whose initialisation has not been fenced: fence_mbarrier_init is missing");
    if (checking())
        for (Load::Piece &piece : load.pieces) check_load(piece.to, 16, load.barrier);
    for (Load::Piece &piece : load.pieces) memset(piece.to, 0xff, 16);
    block.loads.push_back(std::move(load));
    if (block.random.coin()) land((unsigned)block.loads.size() - 1);
}

} // namespace

void land(size_t index) {
    Load load = std::move(block.loads[index]);
    block.loads.erase(block.loads.begin() + (long)index);
    for (Load::Piece &piece : load.pieces) {
        memset(piece.to, 0, 16);
        if (piece.valid) memcpy(piece.to + piece.skip, piece.from + piece.skip, piece.valid);
        if (checking()) check_landed(piece.to, 16);
    }
    Mbarrier &barrier = block.mbarriers[load.barrier];
    barrier.bytes -= (int64_t)load.pieces.size() * 16;
    end_phase(barrier);
}

} // namespace emulator

using namespace emulator;

void emulated_mbarrier_init(uint64_t *barrier, unsigned arrivals) {
    emulated_aligned(barrier, 8);
    if (!arrivals || arrivals >= 1 << 20) fail("an mbarrier of " + std::to_string(arrivals) + " arrivals");
    if (block.mbarriers.size() == 64) fail("more than 64 mbarriers in a block");
    for (Mbarrier &other : block.mbarriers)
        if (other.place == barrier) fail("an mbarrier is initialised twice: " + describe(barrier));
    *barrier = MARK ^ block.mbarriers.size();
    Mbarrier made{barrier, arrivals, arrivals, 0};
    made.unfenced = (int)block.current->place.thread.x;
    block.mbarriers.push_back(made);
}

void emulated_fence_mbarrier_init() {
    for (Mbarrier &barrier : block.mbarriers)
        if (barrier.unfenced == (int)block.current->place.thread.x) barrier.unfenced = -1;
}

void emulated_mbarrier_arrive(uint64_t *place, unsigned expected_bytes) {
    Mbarrier &barrier = block.mbarriers[number_of(place)];
    if (!barrier.pending) fail("more arrivals than a phase has at " + name(barrier));
    release(barrier.gathering);
    barrier.bytes += expected_bytes;
    barrier.pending--;
    end_phase(barrier);
}

void emulated_mbarrier_wait(uint64_t *place, unsigned parity) {
    if (parity > 1) fail("a parity is 0 or 1");
    size_t number = number_of(place);
    if (block.random.coin()) yield();
    while ((block.mbarriers[number].phases & 1) == parity) wait_for(name(block.mbarriers[number]));
    acquire(block.mbarriers[number].completed);
}

void emulated_fence_async() { block.current->fenced = block.current->stores; }

void emulated_named_barrier(unsigned number, unsigned threads, int wait) {
    if (!number || number > 15) fail("named barriers are 1 to 15; 0 is sync_block's");
    if (!threads || threads % 32 || threads > block.fibers.size()) fail("a named barrier of " + std::to_string(threads) + " threads");
    NamedBarrier &barrier = block.named[number];
    std::string name = "named barrier " + std::to_string(number);
    if (barrier.arrived && barrier.threads != threads) fail("threads come to " + name + " with different counts");
    barrier.threads = threads;
    release(barrier.gathering);
    unsigned generation = barrier.generation;
    if (++barrier.arrived == threads) {
        barrier.arrived = 0;
        barrier.generation++;
        barrier.completed = barrier.gathering;
        for (Fiber &fiber : block.fibers)
            if (fiber.state == State::Waiting && fiber.awaited == name) wake(fiber);
    }
    if (!wait) return;
    while (barrier.generation == generation) wait_for(name);
    acquire(barrier.completed);
}

void emulated_tensor_load(void *to, const void *map, int rank, const int *at, uint64_t *place) {
    TensorMap t;
    memcpy(&t, map, sizeof t);
    if (t.kind != TensorMap::KIND) fail("a tensor map that cuTensorMapEncodeTiled has not made");
    if (t.rank != rank) fail("a copy of " + std::to_string(rank) + " dimensions by a tensor map of " + std::to_string(t.rank));
    size_t row_bytes = (size_t)t.box[0] * t.element, rows = 1;
    for (int d = 1; d < rank; d++) rows *= t.box[d];
    check_destination(to, rows * row_bytes, t.swizzle ? t.swizzle * 8 : 128);
    if (t.swizzle && row_bytes != t.swizzle) fail("a box whose rows do not fill the swizzle is not emulated");
    Load load{{}, number_of(place)};
    for (size_t row = 0; row < rows; row++) {
        const char *from = t.address;
        bool inside = true;
        size_t rest = row;
        for (int d = 1; d < rank; d++) {
            int64_t x = at[d] + (int64_t)(rest % t.box[d]);
            rest /= t.box[d];
            inside &= x >= 0 && x <= (int64_t)t.sizes[d];
            if (inside) from += (uint64_t)x * t.strides[d - 1];
        }
        for (size_t unit = 0; unit < row_bytes; unit += 16) {
            // Elements of this unit that the tensor has.
            int64_t first = at[0] + (int64_t)(unit / t.element), end = first + 16 / t.element, size = (int64_t)t.sizes[0] + 1;
            int64_t begin = first < 0 ? 0 : first, last = end > size ? size : end;
            size_t offset = swizzled((size_t)((char *)to - block.dynamic) + row * row_bytes + unit, t.swizzle);
            Load::Piece piece{block.dynamic + offset, from + first * t.element, 0, 0};
            if (inside && begin < last) {
                piece.skip = (unsigned)((begin - first) * t.element), piece.valid = (unsigned)((last - begin) * t.element);
                check_source(piece.from + piece.skip, piece.valid);
            }
            load.pieces.push_back(piece);
        }
    }
    start(std::move(load));
}

void emulated_bulk_load(void *to, const void *from, unsigned bytes, uint64_t *place) {
    emulated_aligned(from, 16);
    if (!bytes || bytes % 16) fail("a bulk copy of " + std::to_string(bytes) + " bytes, which is no multiple of 16");
    check_destination(to, bytes, 16);
    check_source((const char *)from, bytes);
    Load load{{}, number_of(place)};
    for (unsigned unit = 0; unit < bytes; unit += 16) load.pieces.push_back({(char *)to + unit, (const char *)from + unit, 0, 16});
    start(std::move(load));
}

extern "C" int cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *address, const uint64_t *sizes, const uint64_t *strides,
                                      const unsigned *box, const unsigned *steps, int interleave, int swizzle, int, int fill) {
    // The conditions of the CUDA driver API's documentation, "Tensor Map Object Management".
    auto invalid = [](const std::string &what) { return set_last_error("cuTensorMapEncodeTiled: " + what), 1; };
    constexpr unsigned char element_bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    constexpr unsigned swizzle_bytes[] = {0, 32, 64, 128};
    if ((uintptr_t)map % 64) return invalid("the map is not aligned to 64 bytes");
    if (type < 0 || type >= (int)sizeof element_bytes) return invalid("an unknown type of elements");
    if (!rank || rank > 5) return invalid("a rank that is not 1 to 5");
    if ((uintptr_t)address % 16) return invalid("an address that is no multiple of 16");
    if (interleave) return invalid("interleaved layouts are not emulated");
    if (swizzle < 0 || swizzle > 3) return invalid("a swizzle that is not emulated");
    if (fill) return invalid("a fill by NaN is not emulated");
    TensorMap t{};
    t.kind = TensorMap::KIND;
    t.address = (const char *)address;
    t.rank = (uint8_t)rank, t.element = element_bytes[type], t.swizzle = (uint8_t)swizzle_bytes[swizzle];
    for (unsigned d = 0; d < rank; d++) {
        if (!sizes[d] || sizes[d] > 1ull << 32) return invalid("a dimension that is not 1 to 2^32");
        if (!box[d] || box[d] > 256) return invalid("a box whose dimension is not 1 to 256");
        if (steps[d] != 1) return invalid("element strides other than 1 are not emulated");
        t.sizes[d] = (uint32_t)(sizes[d] - 1), t.box[d] = (uint16_t)box[d];
        if (d == 0) continue;
        uint64_t stride = strides[d - 1];
        if (!stride || stride % 16 || stride >= 1ull << 40) return invalid("a stride that is no multiple of 16 in 16 to 2^40");
        t.strides[d - 1] = stride;
    }
    size_t row = (size_t)box[0] * t.element;
    if (row % 16) return invalid("a box whose rows are no multiple of 16 bytes");
    if (t.swizzle && row > t.swizzle) return invalid("a box whose rows are longer than the swizzle");
    memset(map, 0, 128);
    memcpy(map, &t, sizeof t);
    return 0;
}
