// Warp functions, asynchronous copies and tensor-core instructions, each for all lanes at once.
#include <cmath>
#include <cstring>

#include "emulator.h"

using namespace emulator;

void emulated_sync_warp(unsigned mask) {
    meet(mask, [](unsigned, void **) {}, nullptr);
}

namespace {

struct Shuffle {
    void *value;
    size_t bytes;
    int source;
    unsigned char copy[16];
};

void shuffle_all(unsigned mask, void **arguments) {
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) {
            auto *s = (Shuffle *)arguments[lane];
            memcpy(s->copy, s->value, s->bytes);
        }
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) {
            auto *s = (Shuffle *)arguments[lane];
            if (s->source < 0) continue;
            // What a lane outside the mask gives is undefined.
            if (mask >> s->source & 1) memcpy(s->value, ((Shuffle *)arguments[s->source])->copy, s->bytes);
            else memset(s->value, 0xff, s->bytes);
        }
}

struct Ballot {
    bool predicate;
    unsigned out;
};

void ballot_all(unsigned mask, void **arguments) {
    unsigned all = 0;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) all |= (unsigned)((Ballot *)arguments[lane])->predicate << lane;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) ((Ballot *)arguments[lane])->out = all;
}

} // namespace

void emulated_shuffle(unsigned mask, void *value, size_t size, int source) {
    if (size > 16) fail("a shuffle of more than 16 bytes");
    Shuffle s{value, size, source, {}};
    meet(mask, shuffle_all, &s);
}

unsigned emulated_ballot(unsigned mask, int predicate) {
    Ballot b{predicate != 0, 0};
    meet(mask, ballot_all, &b);
    return b.out;
}

unsigned emulated_atomic_add(unsigned *counter, unsigned by) {
    emulated_aligned(counter, 4);
    check_atomic(counter);
    unsigned before = *counter;
    *counter = before + by;
    return before;
}

// ---- asynchronous copies: made at their start or at the wait, the two ends of what is legal, by the schedule's choice

namespace {

void make(Copy &copy) {
    if (copy.made) return;
    copy.made = true;
    memcpy(copy.to, copy.from, copy.valid);
    memset((char *)copy.to + copy.valid, 0, copy.bytes - copy.valid);
}

} // namespace

void emulated_async_copy(void *to, const void *from, unsigned bytes, unsigned valid) {
    const char *p = (const char *)to;
    if (p < block.shared || p >= block.dynamic + SHARED_BYTES) fail("an asynchronous copy to memory that is not shared: " + describe(to));
    if (valid > bytes) fail("an asynchronous copy of more valid bytes than bytes");
    emulated_aligned(to, bytes);
    if (valid) {
        emulated_aligned(from, bytes);
        Region *region = region_of(from);
        if (!region || (const char *)from + valid > region->begin + region->bytes)
            fail("an asynchronous copy of " + std::to_string(valid) + " bytes from " + describe(from));
    }
    if (checking()) {
        if (valid) check_access(from, valid, false, __builtin_return_address(0));
        check_access(to, bytes, true, __builtin_return_address(0));
        check_async(to, bytes, false);
    }
    Copy copy{to, from, bytes, valid, false};
    if (block.random.coin()) make(copy);
    else if (!checking()) memset(to, 0xff, bytes);
    block.current->open.push_back(copy);
}

void emulated_async_commit() {
    Fiber &me = *block.current;
    me.groups.push_back(std::move(me.open));
    me.open.clear();
}

void emulated_async_wait(unsigned pending) {
    Fiber &me = *block.current;
    while (me.groups.size() > pending) {
        for (Copy &copy : me.groups.front()) {
            make(copy);
            if (checking()) check_async(copy.to, copy.bytes, true);
        }
        me.groups.erase(me.groups.begin());
    }
}

// ---- matrices

namespace {

float bf16(unsigned bits) {
    uint32_t wide = bits << 16;
    float out;
    memcpy(&out, &wide, 4);
    return out;
}

struct LoadMatrices {
    unsigned *out;
    const void *row;
    int count;
    bool transposed;
};

void load_all(unsigned mask, void **arguments) {
    auto *first = (LoadMatrices *)arguments[0];
    uint16_t matrices[4][8][8];
    for (int i = 0; i < first->count; i++)
        for (int row = 0; row < 8; row++) memcpy(matrices[i][row], ((LoadMatrices *)arguments[i * 8 + row])->row, 16);
    for (int lane = 0; lane < 32; lane++) {
        auto *me = (LoadMatrices *)arguments[lane];
        int g = lane >> 2, c = (lane & 3) * 2;
        for (int i = 0; i < first->count; i++)
            me->out[i] = me->transposed ? matrices[i][c][g] | (unsigned)matrices[i][c + 1][g] << 16
                                        : matrices[i][g][c] | (unsigned)matrices[i][g][c + 1] << 16;
    }
}

struct Multiply {
    float *d;
    const unsigned *a, *b;
};

void multiply_all(unsigned, void **arguments) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
        auto *me = (Multiply *)arguments[lane];
        int g = lane >> 2, t = (lane & 3) * 2;
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 4; i++) a[g + (i & 1) * 8][t + (i >> 1) * 8 + half] = bf16(me->a[i] >> 16 * half & 0xffff);
            for (int i = 0; i < 2; i++) b[t + i * 8 + half][g] = bf16(me->b[i] >> 16 * half & 0xffff);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        auto *me = (Multiply *)arguments[lane];
        int g = lane >> 2, t = (lane & 3) * 2;
        for (int i = 0; i < 4; i++) {
            int row = g + (i >> 1) * 8, column = t + (i & 1);
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
            me->d[i] += sum;
        }
    }
}

} // namespace

void emulated_load_matrices(unsigned *out, const void *row, int count, bool transposed) {
    Fiber &me = *block.current;
    if ((int)me.place.lane < count * 8) {
        const char *p = (const char *)row;
        if (p < block.shared || p >= block.dynamic + SHARED_BYTES) fail("ldmatrix reads memory that is not shared: " + describe(row));
        emulated_aligned(row, 16);
        if (checking()) check_access(row, 16, false, __builtin_return_address(0));
    }
    LoadMatrices l{out, row, count, transposed};
    meet(0xffffffffu, load_all, &l);
}

void emulated_multiply_16x8x16(float *d, const unsigned *a, const unsigned *b) {
    Multiply m{d, a, b};
    meet(0xffffffffu, multiply_all, &m);
}

// ---- half precision

float emulated_f16_to_f32(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                      : exponent     ? ldexpf((float)(1024 + fraction), exponent - 25)
                                     : ldexpf((float)fraction, -24);
    return bits >> 15 ? -magnitude : magnitude;
}

uint16_t emulated_f32_to_f16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    float magnitude = fabsf(x);
    if (magnitude != magnitude) return 0x7fff;
    if (magnitude >= 65520.0f) return sign | 0x7c00;
    // nearbyintf rounds to nearest even, the mode that nobody changes.
    if (magnitude < ldexpf(1, -14)) return sign | (uint16_t)nearbyintf(ldexpf(magnitude, 24));
    int exponent;
    float mantissa = frexpf(magnitude, &exponent); // in 0.5..1
    unsigned fraction = (unsigned)nearbyintf(ldexpf(mantissa, 11)); // 1024..2048
    return sign | (uint16_t)(((unsigned)(exponent + 14) << 10) + (fraction - 1024));
}
