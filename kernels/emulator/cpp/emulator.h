// CUDA's language and built-in functions for a C++ compiler: what common.cuh includes in place of nvcc's own.
//
// Every CUDA thread is a fiber that runs until its next collective (barrier, shuffle, mma ...); machine.h holds the
// scheduler. Whatever a kernel may not do ends the launch with a fault in words: see fault().
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <utility>

// Function and variable qualifiers. `__noinline__` and `__align__` come last: the system's headers use such names.
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

#include "vectors.h"

// The signature of a collective carries the place in the source, so that a fault can name it.
#define EMULATED_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

extern __thread uint3 threadIdx, blockIdx;
extern __thread dim3 blockDim, gridDim;
extern __thread unsigned char* emulated_shared_bytes;

// Ends the launch. `what` reads on from "block b, thread t".
[[noreturn]] void emulated_fault(const char* what, const char* file = nullptr, int line = 0);
[[noreturn]] void emulated_unaligned(const void* pointer, unsigned bytes, const char* file, int line);

template <class T>
__forceinline__ T* shared_memory() {
    return reinterpret_cast<T*>(emulated_shared_bytes);
}

#define CHECK_ALIGNED(pointer, bytes)                                                      \
    do {                                                                                   \
        if (reinterpret_cast<uintptr_t>(pointer) % (bytes) != 0)                           \
            emulated_unaligned((pointer), (bytes), __builtin_FILE(), __builtin_LINE());    \
    } while (0)

// ---- Kernels -------------------------------------------------------------------------------------------------------

// The build finds every kernel of a file by the constant that this leaves in the preprocessed text, and appends a table
// of them to the file (see build.rs).
#define KERNEL(name, threads)                            \
    constexpr unsigned emulated_threads_of_##name = threads; \
    extern "C" void name

enum EmulatedKind : unsigned { EMULATED_POINTER, EMULATED_INT32, EMULATED_INT64, EMULATED_FLOAT };

struct EmulatedKernel {
    const char* name;
    unsigned threads;
    unsigned parameters;
    const unsigned* kinds;
    void (*function)();
    void (*call)(void (*function)(), void* const* arguments);
};

struct EmulatedTable {
    const EmulatedKernel* kernels;
    unsigned count;
};

template <class T>
constexpr unsigned emulated_kind() {
    if constexpr (__is_class(T)) {
        static_assert(sizeof(T) == 0, "a kernel takes pointers, 32- and 64-bit integers and float only");
        return 0;
    } else if constexpr (static_cast<T>(0.5f) != static_cast<T>(0)) {
        static_assert(sizeof(T) == 4, "a kernel takes no double");
        return EMULATED_FLOAT;
    } else {
        static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a kernel takes no integers of 8 or 16 bits");
        return sizeof(T) == 4 ? EMULATED_INT32 : EMULATED_INT64;
    }
}

template <class T>
struct EmulatedParameter {
    static constexpr unsigned kind = emulated_kind<T>();
};
template <class T>
struct EmulatedParameter<T*> {
    static constexpr unsigned kind = EMULATED_POINTER;
};

template <class... A>
struct EmulatedSignature {
    static constexpr unsigned kinds[sizeof...(A) + 1] = {EmulatedParameter<A>::kind..., 0};

    template <size_t... I>
    static void spread(void (*function)(A...), void* const* arguments, std::index_sequence<I...>) {
        function(*static_cast<A*>(arguments[I])...);
    }
    static void call(void (*function)(), void* const* arguments) {
        spread(reinterpret_cast<void (*)(A...)>(function), arguments, std::index_sequence_for<A...>());
    }
};

template <class... A>
EmulatedKernel emulated_kernel(const char* name, unsigned threads, void (*function)(A...)) {
    using S = EmulatedSignature<A...>;
    return {name, threads, sizeof...(A), S::kinds, reinterpret_cast<void (*)()>(function), S::call};
}

// ---- Collectives ---------------------------------------------------------------------------------------------------

enum class EmulatedOp : unsigned { None, Syncwarp, Shfl, ShflUp, ShflDown, ShflXor, Ballot, Any, All, Mma, Ldmatrix, LdmatrixTrans };

void emulated_syncthreads(const char* file, int line);
uint64_t emulated_warp(EmulatedOp op, unsigned mask, uint64_t value, int operand, int width, const char* file, int line);

__forceinline__ void __syncthreads(EMULATED_PLACE) { emulated_syncthreads(file, line); }
__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu, EMULATED_PLACE) {
    emulated_warp(EmulatedOp::Syncwarp, mask, 0, 0, 32, file, line);
}

template <class T>
__forceinline__ T emulated_shuffle(EmulatedOp op, unsigned mask, T v, int operand, int width, const char* file, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof(T));
    bits = emulated_warp(op, mask, bits, operand, width, file, line);
    memcpy(&v, &bits, sizeof(T));
    return v;
}
template <class T>
__forceinline__ T __shfl_sync(unsigned mask, T v, int source, int width = 32, EMULATED_PLACE) {
    return emulated_shuffle(EmulatedOp::Shfl, mask, v, source, width, file, line);
}
template <class T>
__forceinline__ T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, EMULATED_PLACE) {
    return emulated_shuffle(EmulatedOp::ShflUp, mask, v, static_cast<int>(delta), width, file, line);
}
template <class T>
__forceinline__ T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, EMULATED_PLACE) {
    return emulated_shuffle(EmulatedOp::ShflDown, mask, v, static_cast<int>(delta), width, file, line);
}
template <class T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, EMULATED_PLACE) {
    return emulated_shuffle(EmulatedOp::ShflXor, mask, v, lanes, width, file, line);
}
__forceinline__ unsigned __ballot_sync(unsigned mask, int vote, EMULATED_PLACE) {
    return static_cast<unsigned>(emulated_warp(EmulatedOp::Ballot, mask, vote != 0, 0, 32, file, line));
}
__forceinline__ int __any_sync(unsigned mask, int vote, EMULATED_PLACE) {
    return static_cast<int>(emulated_warp(EmulatedOp::Any, mask, vote != 0, 0, 32, file, line));
}
__forceinline__ int __all_sync(unsigned mask, int vote, EMULATED_PLACE) {
    return static_cast<int>(emulated_warp(EmulatedOp::All, mask, vote != 0, 0, 32, file, line));
}

// ---- Tensor cores and asynchronous copies (mma.cuh) ------------------------------------------------------------------

void emulated_mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATED_PLACE);
void emulated_ldmatrix(uint32_t (&r)[4], const void* row, bool transposed, EMULATED_PLACE);
void emulated_cp_async(void* to, const void* from, bool valid, EMULATED_PLACE);
void emulated_cp_async_commit();
void emulated_cp_async_wait(int groups);

#include "intrinsics.h"
