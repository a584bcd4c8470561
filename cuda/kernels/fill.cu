// out = value, any strides. X is an unsigned integer of the element's size; the value comes as its bits.
//
// Traffic: one write of every element.
#include "strided.cuh"

KERNEL(fill, 256, X *out, Strided<1> walk, u64 bits) {
    Pack<X, PACK> value;
    UNROLL for (int i = 0; i < PACK; i++) value[i] = (X)bits;
    for_each_entry(walk, [&](const u64(&at)[1]) { store_pack(out + at[0], value); });
}
