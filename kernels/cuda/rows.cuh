// What the row kernels share: eight values or one at a time, and which thread works where.
//
// Every kernel has two forms. The one of width 8 moves 16 bytes of bf16 per access and wants rows that start at
// multiples of 16 bytes and are multiples of 8 long; the one of width 1 takes any matrix. The launcher chooses.
#pragma once

#include "common.cuh"

// Values of a row as they are stored: kept packed, they cost half the registers of floats.
template <int WIDTH>
struct Packed;
template <>
struct Packed<8> {
    uint4 v;
};
template <>
struct Packed<1> {
    bf16 v;
};

DEVICE void load_packed(const bf16* p, Packed<8>& out) {
    CHECK_ALIGNED(p, 16);
    out.v = *reinterpret_cast<const uint4*>(p);
}
DEVICE void load_packed(const bf16* p, Packed<1>& out) { out.v = *p; }

DEVICE void store_packed(bf16* p, const Packed<8>& v) { store8(p, v.v); }
DEVICE void store_packed(bf16* p, const Packed<1>& v) { *p = v.v; }

DEVICE void unpack(const Packed<8>& from, float (&to)[8]) { unpack8(from.v, to); }
DEVICE void unpack(const Packed<1>& from, float (&to)[1]) { to[0] = to_float(from.v); }

DEVICE Packed<8> pack(const float (&v)[8]) { return {pack8(v)}; }
DEVICE Packed<1> pack(const float (&v)[1]) {
    Packed<1> out;
    out.v = to_bf16(v[0]);
    return out;
}

// All values with the same bits.
DEVICE void splat(uint16_t bits, Packed<8>& out) {
    const uint32_t pair = bits | static_cast<uint32_t>(bits) << 16;
    out.v.x = out.v.y = out.v.z = out.v.w = pair;
}
DEVICE void splat(uint16_t bits, Packed<1>& out) { out.v.bits = bits; }

// Rounds to bf16 and back, two values per instruction where there are two.
template <int WIDTH>
DEVICE void round_all(float (&v)[WIDTH]) {
    unpack(pack(v), v);
}

DEVICE void load_floats(const float* p, float (&out)[8]) {
    CHECK_ALIGNED(p, 16);
    const float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
    out[0] = a.x;
    out[1] = a.y;
    out[2] = a.z;
    out[3] = a.w;
    out[4] = b.x;
    out[5] = b.y;
    out[6] = b.z;
    out[7] = b.w;
}
DEVICE void load_floats(const float* p, float (&out)[1]) { out[0] = *p; }

DEVICE void store_floats(float* p, const float (&v)[8]) {
    CHECK_ALIGNED(p, 16);
    float4 a, b;
    a.x = v[0];
    a.y = v[1];
    a.z = v[2];
    a.w = v[3];
    b.x = v[4];
    b.y = v[5];
    b.z = v[6];
    b.w = v[7];
    __stcg(reinterpret_cast<float4*>(p), a);
    __stcg(reinterpret_cast<float4*>(p) + 1, b);
}
DEVICE void store_floats(float* p, const float (&v)[1]) { *p = v[0]; }

constexpr uint16_t NAN_BITS = 0x7fff;
// Not a number, and quiet.
DEVICE float not_a_number() { return __uint_as_float(0x7fffffffu); }

// Where a thread of an elementwise kernel works: on `WIDTH` columns from `col` on, of the rows `row`, `row + step`, ...
struct Place {
    int64_t row;
    int step;
    int col;
};

// A row is cut into `chunks` equal pieces of `lanes` threads each. A block takes one piece of as many rows as it has
// threads for, `repeat` times over; blocks side by side come first. Threads left over get a column beyond every row.
template <int WIDTH>
DEVICE Place place(int lanes, int chunks, int repeat) {
    const int per_block = blockDim.x / lanes;
    const int slot = threadIdx.x / lanes, lane = threadIdx.x % lanes;
    const unsigned chunk = blockIdx.x % static_cast<unsigned>(chunks);
    const unsigned band = blockIdx.x / static_cast<unsigned>(chunks);
    Place out;
    out.row = static_cast<int64_t>(band) * per_block * repeat + slot;
    out.step = per_block;
    out.col = slot < per_block ? (static_cast<int>(chunk) * lanes + lane) * WIDTH : 0x7fffffff;
    return out;
}
