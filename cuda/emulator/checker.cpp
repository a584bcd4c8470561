// The checker of races, uninitialised reads and bounds.
//
// Kernels are compiled with -fsanitize=thread, which calls a function at every load and store; those functions are defined here, in the place of
// ThreadSanitizer's own library. For each granule of shared and device memory the last writer and two readers are kept. Two accesses by
// different threads, one of them a write, need a barrier of the block (or, within a warp, a warp-wide function) between them; those of different blocks
// have nothing to order them but a counter that both have added to. Mbarriers and named barriers order what clocks say: who arrives
// gives what it knows, who waits takes it.
//
// Copies that count on an mbarrier and products of a warpgroup are accesses too: a copy's bytes belong to those who know of the end of the
// phase that it counts on; while a product is under way nobody writes what it reads; and either sees an ordinary store only if the storing
// thread has called fence_async since.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "driver.h"

namespace emulator {

/// An access: who, and after how many barriers of the block and meetings of the warp.
struct Access {
    int thread = -1;
    unsigned block = 0, epoch = 0, warp_epoch = 0, time = 0;
};

/// What has been done to a granule of device memory since the launch began, or of shared memory since the block did.
struct Cell {
    uint64_t since = 0;
    Access write, read, other_read;
    bool initialised = false, copying = false;
    uint16_t reading = 0;                // products under way that read it
    uint16_t barrier = 0;                // the mbarrier, from 1, of the copy that wrote it last, and the phase that it ended
    uint32_t phase = 0;
    uint32_t store = 0;                  // the last writer's number of this store; 0 if a copy came since
};

namespace {

constexpr size_t GRANULE = 2; // the smallest element that different threads write beside each other

std::vector<Cell> shared_cells;
uint64_t launches = 0, blocks_begun = 0;
/// Whether kernels are compiled with calls of the checker.
bool instrumented() {
    static const bool on = beside("check") == "races";
    return on;
}

std::vector<std::pair<const void *, std::vector<unsigned>>> counters; // blocks that have added to each, in order
std::vector<bool> before;                                            // blocks that are ordered before the current one

/// `file:line` of code, by the binutils if they are there.
std::string source_line(const void *site) {
    Dl_info info;
    if (!dladdr(site, &info) || !info.dli_fname) return "";
    char command[600];
    unsigned long offset = (unsigned long)((const char *)site - (const char *)info.dli_fbase) - 1;
    snprintf(command, sizeof command, "addr2line -e '%s' 0x%lx 2>/dev/null", info.dli_fname, offset);
    std::string out;
    if (FILE *pipe = popen(command, "r")) {
        char line[400];
        if (fgets(line, sizeof line, pipe)) out = line;
        pclose(pipe);
    }
    while (!out.empty() && (out.back() == '\n' || out.back() == ' ')) out.pop_back();
    out = out.substr(0, out.find(" (")); // "(discriminator 1)"
    size_t slash = out.rfind('/');
    if (out.empty() || out[0] == '?') return "";
    return " at " + (slash == std::string::npos ? out : out.substr(slash + 1));
}

constexpr size_t MBARRIERS = 64; // of a block, at most
size_t threads() { return block.fibers.size(); }
size_t clock_size() { return threads() + block.warps.size() + MBARRIERS; }

void raise(Clock &clock, const Clock &by) {
    if (clock.size() < by.size()) clock.resize(by.size());
    for (size_t i = 0; i < by.size(); i++) clock[i] = clock[i] < by[i] ? by[i] : clock[i];
}

/// Whether the current thread knows of an access of its block through mbarriers and named barriers.
bool known(const Access &a) {
    const Clock &clock = block.current->clock;
    return !clock.empty() && (clock[(size_t)a.thread] >= a.time || clock[threads() + (size_t)a.thread / 32] > a.warp_epoch);
}
bool known(const Cell &cell) {
    const Clock &clock = block.current->clock;
    return !clock.empty() && clock[threads() + block.warps.size() + cell.barrier - 1] >= cell.phase;
}

bool concurrent(const Access &a, bool global) {
    const EmulatedThread &me = *emulated_thread;
    if (a.thread < 0) return false;
    if (a.block != block.index) return global && !(a.block < before.size() && before[a.block]);
    if (a.thread == (int)me.thread.x || a.epoch != block.epoch) return false;
    return ((unsigned)a.thread / 32 != me.warp || a.warp_epoch == block.warps[me.warp].epoch) && !known(a);
}

void examine(Cell &cell, const void *address, bool write, bool global, const void *site) {
    const EmulatedThread &me = *emulated_thread;
    uint64_t since = global ? launches : blocks_begun;
    if (cell.since != since) {
        cell.write = cell.read = cell.other_read = Access();
        cell.since = since;
        cell.copying = false;
        cell.reading = cell.barrier = 0;
        cell.store = 0;
        // Shared memory begins anew with every block.
        if (!global) cell.initialised = false;
    }
    const char *kind = nullptr;
    Access *other = nullptr;
    if (cell.copying) fail("an access to " + describe(address) + " before the asynchronous copy to it has been waited for" + source_line(site));
    if (cell.barrier && !known(cell))
        fail("an access to " + describe(address) + ", which a copy has written, without a wait for the mbarrier that it counts on" + source_line(site));
    if (write && cell.reading) fail("a write to " + describe(address) + ", which a product under way reads" + source_line(site));
    if (concurrent(cell.write, global)) kind = write ? "two writes" : "a read after a write", other = &cell.write;
    else if (write && concurrent(cell.read, global)) kind = "a write after a read", other = &cell.read;
    else if (write && concurrent(cell.other_read, global)) kind = "a write after a read", other = &cell.other_read;
    if (kind) {
        std::string who = other->block == block.index ? "thread " + std::to_string(other->thread) + " of this block"
                                                      : "thread " + std::to_string(other->thread) + " of block number " + std::to_string(other->block);
        fail(std::string("race: ") + kind + " with nothing to order them, on " + describe(address) + ", the first by " + who + source_line(site));
    }
    if (!write && !cell.initialised) {
        cell.initialised = true;
        fail("a read of uninitialised memory: " + describe(address) + source_line(site));
    }
    Access now{(int)me.thread.x, block.index, block.epoch, block.warps[me.warp].epoch, block.current->time};
    if (write) {
        cell.write = now;
        cell.barrier = 0;
        if (!global) cell.store = block.current->stores;
        cell.initialised = true;
    } else {
        bool elsewhere = cell.read.thread >= 0 && (cell.read.block != now.block || cell.read.thread / 32 != now.thread / 32);
        if (elsewhere) cell.other_read = cell.read;
        cell.read = now;
    }
}

} // namespace

bool checking() { return instrumented(); }

void check_launch(const Launch &launch) {
    launches++;
    counters.clear();
    (void)launch;
}

void check_block() {
    before.assign((size_t)block.launch->blocks.x * block.launch->blocks.y * block.launch->blocks.z, false);
    blocks_begun++;
    if (checking() && shared_cells.empty()) shared_cells.resize((STATIC_ARENA + SHARED_BYTES) / GRANULE);
}

void check_access(const void *address, size_t bytes, bool write, const void *site) {
    if (!block.launch || block.aborted) return;
    const char *p = (const char *)address;
    if (p >= block.shared && p < block.dynamic + SHARED_BYTES) {
        bool inside = p >= block.dynamic && p + bytes <= block.dynamic + block.launch->dynamic_shared;
        for (SharedVariable &variable : block.variables) {
            const char *begin = block.shared + variable.offset;
            inside |= p >= begin && p + bytes <= begin + variable.bytes;
        }
        if (write) block.current->stores++;
        if (!inside) fail("out of bounds: " + std::to_string(bytes) + " bytes of shared memory at " + describe(address) + source_line(site));
        size_t first = (size_t)(p - block.shared) / GRANULE, last = (size_t)(p - block.shared + bytes - 1) / GRANULE;
        for (size_t i = first; i <= last; i++) examine(shared_cells[i], block.shared + i * GRANULE, write, false, site);
        return;
    }
    if (!in_device_memory(address)) return;
    Region *region = region_of(address);
    if (!region || p + bytes > region->begin + region->bytes)
        fail(std::string("out of bounds: a ") + (write ? "write" : "read") + " of " + std::to_string(bytes) + " bytes at " + describe(address) +
             source_line(site));
    if (!region->cells) region->cells = new std::vector<Cell>(region->bytes / GRANULE + 1);
    size_t first = (size_t)(p - region->begin) / GRANULE, last = (size_t)(p - region->begin + bytes - 1) / GRANULE;
    for (size_t i = first; i <= last; i++) examine((*region->cells)[i], region->begin + i * GRANULE, write, true, site);
}

void check_async(const void *to, size_t bytes, bool ended) {
    size_t first = (size_t)((const char *)to - block.shared) / GRANULE;
    for (size_t i = first; i < first + bytes / GRANULE; i++) {
        Cell &cell = shared_cells[i];
        cell.copying = !ended;
        // The data arrives at the wait: others may read it after a barrier from then on.
        if (ended) cell.write = {(int)emulated_thread->thread.x, block.index, block.epoch, block.warps[emulated_thread->warp].epoch,
                                 block.current->time};
    }
}

namespace {

/// A store that copies and products do not see.
void require_fence(const Cell &cell, const void *address, const char *reader) {
    if (cell.since != blocks_begun || !cell.store || cell.store <= block.fibers[(size_t)cell.write.thread].fenced) return;
    fail(std::string(reader) + " meets " + describe(address) + ", which thread " + std::to_string(cell.write.thread) +
         " has written by an ordinary store, without a fence_async there");
}

} // namespace

void check_load(const void *to, size_t bytes, size_t barrier) {
    size_t first = (size_t)((const char *)to - block.shared) / GRANULE;
    for (size_t i = first; i < first + bytes / GRANULE; i++) {
        Cell &cell = shared_cells[i];
        const char *address = block.shared + i * GRANULE;
        require_fence(cell, address, "a copy");
        examine(cell, address, true, false, nullptr);
        cell.write = cell.read = cell.other_read = Access();
        cell.copying = true;
        cell.store = 0;
        cell.barrier = (uint16_t)(barrier + 1);
        cell.phase = block.mbarriers[barrier].phases + 1;
    }
}

void check_landed(const void *to, size_t bytes) {
    size_t first = (size_t)((const char *)to - block.shared) / GRANULE;
    for (size_t i = first; i < first + bytes / GRANULE; i++) shared_cells[i].copying = false;
}

void check_product(const void *from, size_t bytes, bool ended) {
    size_t first = (size_t)((const char *)from - block.shared) / GRANULE;
    for (size_t i = first; i < first + bytes / GRANULE; i++) {
        Cell &cell = shared_cells[i];
        const char *address = block.shared + i * GRANULE;
        if (!ended) require_fence(cell, address, "a product");
        examine(cell, address, false, false, nullptr);
        cell.reading += ended ? -1 : 1;
    }
}

void release(Clock &into) {
    if (!checking()) return;
    Fiber &me = *block.current;
    me.clock.resize(clock_size());
    me.clock[me.place.thread.x] = me.time++;
    me.clock[threads() + me.place.warp] = block.warps[me.place.warp].epoch;
    raise(into, me.clock);
}

void acquire(const Clock &from) {
    if (!checking() || from.empty()) return;
    raise(block.current->clock, from);
    block.warps[block.current->place.warp].acquired = true;
}

void merge_clocks(Fiber *first, unsigned count, unsigned mask) {
    Clock all;
    for (unsigned i = 0; i < count; i++)
        if (mask >> (i & 31) & 1) raise(all, first[i].clock);
    if (all.empty()) return;
    for (unsigned i = 0; i < count; i++)
        if (mask >> (i & 31) & 1) raise(first[i].clock, all);
}

void check_atomic(const void *counter) {
    for (auto &[address, blocks] : counters)
        if (address == counter) {
            for (unsigned b : blocks) before[b] = true;
            blocks.push_back(block.index);
            return;
        }
    counters.push_back({counter, {block.index}});
}

void mark_initialised(const void *address, size_t bytes) {
    if (!checking()) return;
    Region *region = region_of(address);
    if (!region || !bytes) return;
    if (!region->cells) region->cells = new std::vector<Cell>(region->bytes / GRANULE + 1);
    size_t first = (size_t)((const char *)address - region->begin) / GRANULE, last = first + (bytes - 1) / GRANULE;
    for (size_t i = first; i <= last && i < region->cells->size(); i++) (*region->cells)[i].initialised = true;
}

void forget_cells(Region &region) {
    delete region.cells;
    region.cells = nullptr;
}

} // namespace emulator

using emulator::check_access;

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
#define HERE __builtin_return_address(0)
#define CHECKED(bytes)                                                                              \
    void __tsan_read##bytes(void *p) { check_access(p, bytes, false, HERE); }                        \
    void __tsan_write##bytes(void *p) { check_access(p, bytes, true, HERE); }                        \
    void __tsan_unaligned_read##bytes(void *p) { check_access(p, bytes, false, HERE); }              \
    void __tsan_unaligned_write##bytes(void *p) { check_access(p, bytes, true, HERE); }              \
    void __tsan_volatile_read##bytes(void *p) { check_access(p, bytes, false, HERE); }               \
    void __tsan_volatile_write##bytes(void *p) { check_access(p, bytes, true, HERE); }               \
    void __tsan_unaligned_volatile_read##bytes(void *p) { check_access(p, bytes, false, HERE); }     \
    void __tsan_unaligned_volatile_write##bytes(void *p) { check_access(p, bytes, true, HERE); }
CHECKED(1)
CHECKED(2)
CHECKED(4)
CHECKED(8)
CHECKED(16)
void __tsan_read_range(void *p, size_t bytes) { check_access(p, bytes, false, HERE); }
void __tsan_write_range(void *p, size_t bytes) { check_access(p, bytes, true, HERE); }
void *__tsan_memcpy(void *to, const void *from, size_t bytes) {
    check_access(from, bytes, false, HERE);
    check_access(to, bytes, true, HERE);
    return memcpy(to, from, bytes);
}
void *__tsan_memset(void *to, int value, size_t bytes) {
    check_access(to, bytes, true, HERE);
    return memset(to, value, bytes);
}
}
