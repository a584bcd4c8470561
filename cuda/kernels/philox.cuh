// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): a block of four words is a
// function of a counter and a key, so that no element needs another's.
#pragma once
#include "prelude.cuh"

struct Words {
    u32 word[4];
};

/// Ten rounds over the counter (`index`, `third`, `fourth`) keyed by `seed`.
DEVICE Words philox(u64 index, u32 third, u32 fourth, u64 seed) {
    Words c = {{(u32)index, (u32)(index >> 32), third, fourth}};
    u32 key[2] = {(u32)seed, (u32)(seed >> 32)};
    UNROLL for (int round = 0; round < 10; round++) {
        u64 a = (u64)0xD2511F53u * c.word[0], b = (u64)0xCD9E8D57u * c.word[2];
        c = Words{{(u32)(b >> 32) ^ c.word[1] ^ key[0], (u32)b, (u32)(a >> 32) ^ c.word[3] ^ key[1], (u32)a}};
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return c;
}
