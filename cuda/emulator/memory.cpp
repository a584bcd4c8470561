// Device memory of the emulated device: one range of addresses, cut into allocations with gaps between them.
#include <sys/mman.h>

#include <cstring>
#include <map>

#include "driver.h"

#if EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {

namespace {

// An address outside all allocations is thereby known for what it is.
constexpr size_t RANGE_BYTES = 64ull << 30;
constexpr size_t GAP = 512;
char *range = nullptr;
std::map<char *, Region> regions;
std::map<char *, size_t> holes; // free parts of the range
size_t allocated = 0;

char *take(size_t bytes) {
    size_t whole = (bytes + 255) / 256 * 256 + GAP;
    if (!range) {
        void *memory = mmap(nullptr, RANGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return nullptr;
        range = (char *)(((uintptr_t)memory + 4095) / 4096 * 4096);
        holes[range] = RANGE_BYTES - 8192;
    }
    for (auto hole = holes.begin(); hole != holes.end(); ++hole) {
        auto [begin, length] = *hole;
        if (length < whole) continue;
        holes.erase(hole);
        if (length > whole) holes[begin + whole] = length - whole;
#if EMULATOR_ASAN
        __asan_poison_memory_region(begin + bytes, whole - bytes);
        __asan_unpoison_memory_region(begin, bytes);
#endif
        memset(begin, 0xff, bytes); // NaN
        return begin;
    }
    return nullptr;
}

void give(char *begin, size_t bytes) {
    size_t whole = (bytes + 255) / 256 * 256 + GAP;
#if EMULATOR_ASAN
    __asan_poison_memory_region(begin, whole);
#endif
    if (whole >= (1 << 20)) {
        char *page = (char *)(((uintptr_t)begin + 4095) / 4096 * 4096);
        madvise(page, (size_t)(begin + whole - page) / 4096 * 4096, MADV_DONTNEED);
    }
    auto hole = holes.emplace(begin, whole).first;
    auto next = std::next(hole);
    if (next != holes.end() && hole->first + hole->second == next->first) {
        hole->second += next->second;
        holes.erase(next);
    }
    if (hole != holes.begin()) {
        auto previous = std::prev(hole);
        if (previous->first + previous->second == hole->first) {
            previous->second += hole->second;
            holes.erase(hole);
        }
    }
}

} // namespace

void *allocate(size_t bytes) {
    char *begin = take(bytes);
    if (!begin) return nullptr;
    allocated += bytes;
    Region &region = regions[begin];
    region.begin = begin;
    region.bytes = bytes;
    return begin;
}

size_t allocated_bytes() { return allocated; }

std::string release(void *memory) {
    char *begin = (char *)memory;
    auto found = regions.find(begin);
    if (found == regions.end()) return "memory is freed that is not allocated";
    allocated -= found->second.bytes;
    give(begin, found->second.bytes);
    forget_cells(found->second);
    regions.erase(found);
    return "";
}

Region *region_of(const void *address) {
    auto after = regions.upper_bound((char *)address);
    if (after == regions.begin()) return nullptr;
    Region &region = std::prev(after)->second;
    return (char *)address < region.begin + region.bytes ? &region : nullptr;
}

bool in_device_memory(const void *address) { return range && (char *)address >= range && (char *)address < range + RANGE_BYTES; }

bool is_device_range(const void *address, size_t bytes) {
    Region *region = region_of(address);
    return region && (char *)address + bytes <= region->begin + region->bytes;
}

} // namespace emulator
