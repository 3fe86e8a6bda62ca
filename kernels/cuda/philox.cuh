// Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
#pragma once

#include "common.cuh"

// Four random words at a counter. The value at a counter depends on nothing that came before it.
DEVICE uint4 philox(uint4 counter, uint32_t key0, uint32_t key1) {
    uint32_t a = counter.x, b = counter.y, c = counter.z, d = counter.w;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = static_cast<uint64_t>(0xd2511f53u) * a, p1 = static_cast<uint64_t>(0xcd9e8d57u) * c;
        a = static_cast<uint32_t>(p1 >> 32) ^ b ^ key0;
        b = static_cast<uint32_t>(p1);
        c = static_cast<uint32_t>(p0 >> 32) ^ d ^ key1;
        d = static_cast<uint32_t>(p0);
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    uint4 out;
    out.x = a;
    out.y = b;
    out.z = c;
    out.w = d;
    return out;
}
