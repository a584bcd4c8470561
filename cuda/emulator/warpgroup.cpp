// Products of a warpgroup (wgmma) and its registers. A warp carries out the 16 rows that it owns, when the product starts or when it is waited
// for, the two ends of what is legal. Until a wait names them, accumulators hold NaN.
#include <cmath>
#include <cstring>

#include "emulator.h"

using namespace emulator;

namespace {

constexpr unsigned WINDOW = 0x400; // where dynamic shared memory begins, as on a card

float bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float out;
    memcpy(&out, &wide, 4);
    return out;
}

Warp &warp() { return block.warps[emulated_thread->warp]; }

/// The operand memory of a descriptor, 16 bytes at a time: PTX ISA, "Matrix-Descriptor Format" and "Strides".
struct Operand {
    size_t start, leading, stride;

    explicit Operand(uint64_t described)
        : start((described & 0x3fff) << 4), leading((described >> 16 & 0x3fff) << 4), stride((described >> 32 & 0x3fff) << 4) {
        if (described >> 62 != 1) fail("a product's descriptor without the 128-byte swizzle is not emulated");
        if (described >> 49 & 7) fail("a product's descriptor with a base offset is not emulated");
    }

    const char *at(size_t address) const {
        address ^= (address >> 7 & 7) << 4;
        if (address < WINDOW || address + 16 > WINDOW + block.launch->dynamic_shared)
            fail("a product reads beyond the " + std::to_string(block.launch->dynamic_shared) + " bytes of dynamic shared memory");
        return block.dynamic + (address - WINDOW);
    }
    /// K-major: eight columns from 8 `half` on of a row. MN-major: eight rows from 8 `group` on of step `k`.
    const char *k_major(size_t row, size_t half) const { return at(start + row / 8 * stride + row % 8 * 128 + half * 16); }
    const char *mn_major(size_t k, size_t group) const {
        return at(start + k / 8 * stride + k % 8 * 128 + group / 8 * leading + group % 8 * 16);
    }

    /// Every 16 bytes of [rows, 16] or, MN-major, of [16, rows].
    template <class F> void each(bool mn, size_t first, size_t rows, F f) const {
        if (mn)
            for (size_t k = 0; k < 16; k++)
                for (size_t group = 0; group < rows / 8; group++) f(mn_major(k, group), k, group);
        else
            for (size_t row = first; row < first + rows; row++)
                for (size_t half = 0; half < 2; half++) f(k_major(row, half), row - first, half);
    }
};

size_t warp_row() { return (size_t)(emulated_thread->warp % 4) * 16; }

/// Tells the checker what a product reads.
void check(const Product &p, bool ended) {
    auto examine = [&](const char *bytes, size_t, size_t) { check_product(bytes, 16, ended); };
    Operand(p.b_described).each(p.b_mn_major, 0, p.n, examine);
    if (!p.a[0]) Operand(p.a_described).each(false, warp_row(), 16, examine);
}

Accumulator *accumulator_of(float *lane_0) {
    for (Accumulator &accumulator : warp().accumulators)
        if (accumulator.registers[0] == lane_0) return &accumulator;
    return nullptr;
}

void make(Product &p) {
    if (p.made) return;
    p.made = true;
    static float a[16][16], b[16][256];
    auto eight = [](const char *bytes, auto to) {
        for (size_t i = 0; i < 8; i++) {
            uint16_t bits;
            memcpy(&bits, bytes + 2 * i, 2);
            to(i) = bf16(bits);
        }
    };
    Operand(p.b_described).each(p.b_mn_major, 0, p.n, [&](const char *bytes, size_t x, size_t y) {
        if (p.b_mn_major) eight(bytes, [&](size_t i) -> float & { return b[x][y * 8 + i]; });
        else eight(bytes, [&](size_t i) -> float & { return b[y * 8 + i][x]; });
    });
    if (!p.a[0]) {
        Operand(p.a_described).each(false, warp_row(), 16, [&](const char *bytes, size_t row, size_t half) {
            eight(bytes, [&](size_t i) -> float & { return a[row][half * 8 + i]; });
        });
    } else {
        for (size_t lane = 0; lane < 32; lane++)
            for (size_t i = 0; i < 4; i++)
                for (size_t half = 0; half < 2; half++)
                    a[lane / 4 + i % 2 * 8][lane % 4 * 2 + i / 2 * 8 + half] = bf16((uint16_t)(p.a[lane][i] >> 16 * half));
    }
    Accumulator &d = *accumulator_of(p.registers);
    for (size_t row = 0; row < 16; row++) {
        static float sums[256];
        memset(sums, 0, sizeof sums);
        for (size_t k = 0; k < 16; k++)
            for (size_t column = 0; column < p.n; column++) sums[column] += a[row][k] * b[k][column];
        for (size_t column = 0; column < p.n; column++) {
            size_t lane = row % 8 * 4 + column % 8 / 2;
            float &out = d.values[lane][column / 8 * 4 + row / 8 * 2 + column % 2];
            out = p.accumulate ? out + sums[column] : sums[column];
        }
    }
}

struct Issue {
    float *d;
    int n;
    const unsigned *a;
    uint64_t a_described, b_described;
    bool b_mn_major, accumulate;
};

bool fenced(const Warp &w, const void *registers, size_t bytes) {
    for (auto &[begin, length] : w.fenced)
        if ((const char *)registers >= begin && (const char *)registers + bytes <= begin + length) return true;
    return false;
}

void issue_all(unsigned, void **arguments) {
    Warp &w = warp();
    const Issue &first = *(Issue *)arguments[0];
    for (int lane = 1; lane < 32; lane++) {
        const Issue &other = *(Issue *)arguments[lane];
        if (other.n != first.n || other.a_described != first.a_described || other.b_described != first.b_described ||
            other.b_mn_major != first.b_mn_major || other.accumulate != first.accumulate || !other.a != !first.a)
            fail("the lanes of a warp start different products");
    }
    // All warps of the warpgroup take part in each product.
    auto &log = block.product_log[emulated_thread->warp / 4];
    uint64_t what = ((first.a_described * 31 + first.b_described) * 31 + (uint64_t)first.n) * 4 + first.b_mn_major * 2 + first.accumulate;
    if (w.issued == log.size()) log.push_back(what);
    else if (log[w.issued] != what) fail("the warps of a warpgroup start different products");
    w.issued++;

    size_t count = (size_t)first.n / 2;
    Accumulator *d = accumulator_of(first.d);
    if (!d) {
        if (!fenced(w, first.d, count * 4)) fail("a product's accumulators have been in the threads' hands: name them in a wgmma_fence before it");
        w.accumulators.emplace_back();
        d = &w.accumulators.back();
        for (int lane = 0; lane < 32; lane++) {
            float *registers = ((Issue *)arguments[lane])->d;
            d->registers[lane] = registers;
            d->values[lane].assign(registers, registers + count);
            for (size_t i = 0; i < count; i++) registers[i] = NAN;
        }
    } else if (d->values[0].size() != count || d->collected) {
        fail("accumulators are used by products of different shapes, or by some lanes before others");
    }
    if (first.a && !fenced(w, first.a, 16)) fail("a product's operand in registers has been in the threads' hands: name it in a wgmma_fence before it");
    d->group = w.group;
    Product p{(size_t)first.n, {}, first.a_described, first.b_described, first.b_mn_major, first.accumulate, false, first.d, w.group};
    for (int lane = 0; lane < 32; lane++) p.a[lane] = ((Issue *)arguments[lane])->a;
    if (checking()) check(p, false);
    w.products.push_back(p);
    // Products are carried out in order.
    if (block.random.coin())
        for (Product &product : w.products) make(product);
}

void wait_all(unsigned, void **arguments) {
    Warp &w = warp();
    size_t pending = *(unsigned *)arguments[0], ended = 0;
    while (ended < w.products.size() && w.products[ended].group + pending < w.group) {
        make(w.products[ended]);
        if (checking()) check(w.products[ended], true);
        ended++;
    }
    w.products.erase(w.products.begin(), w.products.begin() + (long)ended);
    w.fenced.clear();
}

/// Whether the accumulator has products that no wait has covered.
bool under_way(const Accumulator &accumulator) {
    for (Product &product : warp().products)
        if (product.registers == accumulator.registers[0]) return true;
    return false;
}

} // namespace

bool emulator::products_under_way() { return !warp().products.empty(); }

unsigned emulated_shared_address(const void *address) {
    const char *p = (const char *)address;
    if (p < block.dynamic || p >= block.dynamic + block.launch->dynamic_shared)
        fail("an operand of a product lies in dynamic shared memory, not at " + describe(address));
    return WINDOW + (unsigned)(p - block.dynamic);
}

void emulated_wgmma(float *d, int n, const unsigned *a, uint64_t a_described, uint64_t b_described, int b_mn_major, int accumulate) {
    if ((emulated_thread->warp / 4 + 1) * 128 > block.fibers.size()) fail("a product by an incomplete warpgroup");
    if (n % 8 || n < 8 || n > 256) fail("a product of " + std::to_string(n) + " columns");
    Issue issue{d, n, a, a_described, b_described, b_mn_major != 0, accumulate != 0};
    meet(0xffffffffu, issue_all, &issue);
}

void emulated_wgmma_fence() {
    meet(0xffffffffu, [](unsigned, void **) {}, nullptr);
}

void emulated_wgmma_fenced(const void *registers, size_t bytes) {
    if (emulated_thread->lane == 0) warp().fenced.push_back({(const char *)registers, bytes});
}

void emulated_wgmma_commit() {
    meet(0xffffffffu, [](unsigned, void **) { warp().group++; }, nullptr);
}

void emulated_wgmma_wait(unsigned pending) { meet(0xffffffffu, wait_all, &pending); }

void emulated_wgmma_waited(void *registers, size_t bytes) {
    Warp &w = warp();
    unsigned lane = emulated_thread->lane;
    for (size_t i = 0; i < w.accumulators.size(); i++) {
        Accumulator &d = w.accumulators[i];
        const char *place = (const char *)d.registers[lane];
        if (place < (char *)registers || place >= (char *)registers + bytes || d.collected >> lane & 1) continue;
        if (under_way(d)) fail("a wgmma_wait names accumulators whose products it does not wait for");
        memcpy(d.registers[lane], d.values[lane].data(), d.values[lane].size() * 4);
        d.collected |= 1u << lane;
        if (d.collected == 0xffffffffu) w.accumulators.erase(w.accumulators.begin() + (long)i--);
    }
}

void emulated_set_registers(unsigned count) {
    if (count % 8 || count < 24 || count > 256) fail("registers of a warpgroup are set to 24 to 256 a thread, a multiple of 8");
    block.registers[emulated_thread->thread.x / 128] = count;
    unsigned sum = 0;
    for (unsigned registers : block.registers) {
        if (!registers) return;
        sum += registers;
    }
    if (sum > 512) fail("the warpgroups ask for " + std::to_string(sum * 128) + " registers, of which a multiprocessor has 65536");
}
