// What every kernel shares: bf16 storage, 16-byte accesses, warp and block reductions.
//
// The same sources are compiled by nvcc for the GPU and, with TUNESMITH_EMULATOR defined, by a C++ compiler for the
// emulator (kernels/emulator), which runs a thread block on the CPU. Whatever is not plain C++ goes through this file
// or mma.cuh. The rules that make both work:
//
// - Kernels are `KERNEL(name, threads)(arguments)`, with arguments of pointer, int, unsigned, int64_t and float type.
// - Shared memory is dynamic only: `shared_memory<T>()` and offsets from it, so that the emulator can poison and guard it.
// - Global offsets are 64-bit. Every row-major matrix has an explicit leading dimension (`ld`, in elements).
// - No atomics, no floating-point sum whose order depends on timing: two runs give equal bits.
// - Warp collectives take the full mask and are called by all 32 lanes of a warp.
#pragma once

#ifdef TUNESMITH_EMULATOR
#include "emulator.h"
#else
#include <stdint.h>

#define KERNEL(name, threads) extern "C" __global__ void __launch_bounds__(threads) name

template <class T>
__device__ __forceinline__ T* shared_memory() {
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    return reinterpret_cast<T*>(shared_bytes);
}

// The emulator checks the alignment of every vector access; the GPU traps by itself.
#define CHECK_ALIGNED(pointer, bytes)
#endif

#define DEVICE __device__ __forceinline__

constexpr unsigned FULL_MASK = 0xffffffffu;
constexpr int WARP = 32;
constexpr float INFINITE = __builtin_huge_valf();

// bf16 as stored: the upper half of an f32.
struct bf16 {
    uint16_t bits;
};

DEVICE float to_float(bf16 v) { return __uint_as_float(static_cast<uint32_t>(v.bits) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
DEVICE bf16 to_bf16(float v) {
    bf16 out;
#ifdef TUNESMITH_EMULATOR
    uint32_t u = __float_as_uint(v);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        out.bits = 0x7fff;
    } else {
        out.bits = static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    }
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
#endif
    return out;
}

// Two values in one register, `low` in the lower half: the order in memory.
DEVICE uint32_t pack_bf16(float low, float high) {
#ifdef TUNESMITH_EMULATOR
    return static_cast<uint32_t>(to_bf16(low).bits) | static_cast<uint32_t>(to_bf16(high).bits) << 16;
#else
    uint32_t out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
#endif
}

DEVICE float low_float(uint32_t pair) { return __uint_as_float(pair << 16); }
DEVICE float high_float(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// Eight bf16 in 16 bytes.
DEVICE void unpack8(uint4 v, float (&out)[8]) {
    out[0] = low_float(v.x);
    out[1] = high_float(v.x);
    out[2] = low_float(v.y);
    out[3] = high_float(v.y);
    out[4] = low_float(v.z);
    out[5] = high_float(v.z);
    out[6] = low_float(v.w);
    out[7] = high_float(v.w);
}

DEVICE uint4 pack8(const float (&v)[8]) {
    uint4 out;
    out.x = pack_bf16(v[0], v[1]);
    out.y = pack_bf16(v[2], v[3]);
    out.z = pack_bf16(v[4], v[5]);
    out.w = pack_bf16(v[6], v[7]);
    return out;
}

// Eight bf16 as one 16-byte access. `p` must be 16-byte aligned.
DEVICE void load8(const bf16* p, float (&out)[8]) {
    CHECK_ALIGNED(p, 16);
    unpack8(*reinterpret_cast<const uint4*>(p), out);
}

// The compiler may break an assignment of 16 bytes into four stores; the intrinsic stays one. Global memory only.
DEVICE void store8(bf16* p, uint4 v) {
    CHECK_ALIGNED(p, 16);
    __stcg(reinterpret_cast<uint4*>(p), v);
}
DEVICE void store8(bf16* p, const float (&v)[8]) { store8(p, pack8(v)); }

// Sum over the 32 lanes, in a fixed tree; every lane gets it.
DEVICE float warp_sum(float v) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(FULL_MASK, v, offset);
    return v;
}

// The larger of two, NaN if either is: fmaxf would drop a NaN, and with it the only trace of an overflow.
DEVICE float max_or_nan(float a, float b) { return (a > b || a != a) ? a : b; }

DEVICE float warp_max(float v) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) v = max_or_nan(v, __shfl_xor_sync(FULL_MASK, v, offset));
    return v;
}

// Sum over a block of `blockDim.x` threads (a multiple of 32), in a fixed order; every thread gets it.
// `scratch` is shared memory for 32 floats, free for reuse after the call's end on every thread.
DEVICE float block_sum(float v, float* scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    v = warp_sum(v);
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = warp_sum(lane < warps ? scratch[lane] : 0.0f);
    __syncthreads();
    return v;
}

DEVICE float block_max(float v, float* scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    v = warp_max(v);
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = warp_max(lane < warps ? scratch[lane] : -INFINITE);
    __syncthreads();
    return v;
}
