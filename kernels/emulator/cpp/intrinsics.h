// CUDA's arithmetic and bit functions. The fast approximations are computed as exactly as the plain functions.
#pragma once

// ---- Bits ------------------------------------------------------------------------------------------------------------

template <class To, class From>
__forceinline__ To emulated_bits(From v) {
    static_assert(sizeof(To) == sizeof(From), "");
    To out;
    memcpy(&out, &v, sizeof(To));
    return out;
}
__forceinline__ unsigned __float_as_uint(float v) { return emulated_bits<unsigned>(v); }
__forceinline__ float __uint_as_float(unsigned v) { return emulated_bits<float>(v); }
__forceinline__ int __float_as_int(float v) { return emulated_bits<int>(v); }
__forceinline__ float __int_as_float(int v) { return emulated_bits<float>(v); }

__forceinline__ int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
__forceinline__ int __clzll(long long v) { return v == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(v)); }
__forceinline__ int __popc(unsigned v) { return __builtin_popcount(v); }
__forceinline__ int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
__forceinline__ int __ffs(int v) { return __builtin_ffs(v); }
__forceinline__ unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }
__forceinline__ int __mulhi(int a, int b) { return static_cast<int>((static_cast<int64_t>(a) * b) >> 32); }
__forceinline__ unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
__forceinline__ unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) out |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
    return out;
}
__forceinline__ unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
__forceinline__ unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}

// ---- Arithmetic --------------------------------------------------------------------------------------------------------

// Some of these names are the C library's own, declared or not according to its version: hence macros.
__forceinline__ float emulated_rsqrtf(float v) { return 1.0f / sqrtf(v); }
#define rsqrtf(v) emulated_rsqrtf(v)
#define __expf(v) expf(v)
#define __exp10f(v) powf(10.0f, (v))
#define __logf(v) logf(v)
#define __log2f(v) log2f(v)
#define __log10f(v) log10f(v)
#define __sinf(v) sinf(v)
#define __cosf(v) cosf(v)
#define __powf(a, b) powf((a), (b))
__forceinline__ void emulated_sincosf(float v, float* sine, float* cosine) {
    *sine = sinf(v);
    *cosine = cosf(v);
}
#define __sincosf(v, sine, cosine) emulated_sincosf((v), (sine), (cosine))
#define sincosf(v, sine, cosine) emulated_sincosf((v), (sine), (cosine))

__forceinline__ float __frcp_rn(float v) { return 1.0f / v; }
__forceinline__ float __fsqrt_rn(float v) { return sqrtf(v); }
__forceinline__ float __frsqrt_rn(float v) { return 1.0f / sqrtf(v); }
__forceinline__ float __fadd_rn(float a, float b) { return a + b; }
__forceinline__ float __fsub_rn(float a, float b) { return a - b; }
__forceinline__ float __fmul_rn(float a, float b) { return a * b; }
__forceinline__ float __fdiv_rn(float a, float b) { return a / b; }
__forceinline__ float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
__forceinline__ float __fdividef(float a, float b) { return a / b; }
__forceinline__ float __saturatef(float v) { return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f; }

__forceinline__ float __int2float_rn(int v) { return static_cast<float>(v); }
__forceinline__ float __uint2float_rn(unsigned v) { return static_cast<float>(v); }
__forceinline__ int __float2int_rn(float v) { return static_cast<int>(rintf(v)); }
__forceinline__ int __float2int_rz(float v) { return static_cast<int>(v); }
__forceinline__ int __float2int_rd(float v) { return static_cast<int>(floorf(v)); }
__forceinline__ unsigned __float2uint_rn(float v) { return static_cast<unsigned>(rintf(v)); }
__forceinline__ unsigned __float2uint_rz(float v) { return static_cast<unsigned>(v); }

// The overloads that CUDA has, so that what is ambiguous there is so here.
#define EMULATED_MIN_MAX(A, B, R)                                                                                        \
    __forceinline__ R min(A a, B b) { return static_cast<R>(a) < static_cast<R>(b) ? static_cast<R>(a) : static_cast<R>(b); } \
    __forceinline__ R max(A a, B b) { return static_cast<R>(a) > static_cast<R>(b) ? static_cast<R>(a) : static_cast<R>(b); }
EMULATED_MIN_MAX(int, int, int)
EMULATED_MIN_MAX(unsigned, unsigned, unsigned)
EMULATED_MIN_MAX(int, unsigned, unsigned)
EMULATED_MIN_MAX(unsigned, int, unsigned)
EMULATED_MIN_MAX(long, long, long)
EMULATED_MIN_MAX(unsigned long, unsigned long, unsigned long)
EMULATED_MIN_MAX(long, unsigned long, unsigned long)
EMULATED_MIN_MAX(unsigned long, long, unsigned long)
EMULATED_MIN_MAX(long long, long long, long long)
EMULATED_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
__forceinline__ float min(float a, float b) { return fminf(a, b); }
__forceinline__ float max(float a, float b) { return fmaxf(a, b); }

// ---- Memory ------------------------------------------------------------------------------------------------------------

template <class T>
__forceinline__ T __ldg(const T* p) {
    return *p;
}
template <class T>
__forceinline__ T __ldcs(const T* p) {
    return *p;
}
template <class T>
__forceinline__ T __ldcg(const T* p) {
    return *p;
}
template <class T>
__forceinline__ T __ldca(const T* p) {
    return *p;
}
template <class T>
__forceinline__ void __stcs(T* p, T v) {
    *p = v;
}
template <class T>
__forceinline__ void __stcg(T* p, T v) {
    *p = v;
}
__forceinline__ void __threadfence() {}
__forceinline__ void __threadfence_block() {}
[[noreturn]] __forceinline__ void __trap() { emulated_fault("called __trap"); }
