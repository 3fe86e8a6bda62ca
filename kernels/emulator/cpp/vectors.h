// CUDA's vector types, with CUDA's alignment.
#pragma once

// One type of N components and its make_ function.
#define EMULATED_VECTOR2(T, name, align)                                     \
    struct alignas(align) name {                                             \
        T x, y;                                                              \
    };                                                                       \
    inline name make_##name(T x, T y) { return {x, y}; }
#define EMULATED_VECTOR3(T, name, align)                                     \
    struct alignas(align) name {                                             \
        T x, y, z;                                                           \
    };                                                                       \
    inline name make_##name(T x, T y, T z) { return {x, y, z}; }
#define EMULATED_VECTOR4(T, name, align)                                     \
    struct alignas(align) name {                                             \
        T x, y, z, w;                                                        \
    };                                                                       \
    inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }

EMULATED_VECTOR2(signed char, char2, 2)
EMULATED_VECTOR3(signed char, char3, 1)
EMULATED_VECTOR4(signed char, char4, 4)
EMULATED_VECTOR2(unsigned char, uchar2, 2)
EMULATED_VECTOR3(unsigned char, uchar3, 1)
EMULATED_VECTOR4(unsigned char, uchar4, 4)
EMULATED_VECTOR2(short, short2, 4)
EMULATED_VECTOR3(short, short3, 2)
EMULATED_VECTOR4(short, short4, 8)
EMULATED_VECTOR2(unsigned short, ushort2, 4)
EMULATED_VECTOR3(unsigned short, ushort3, 2)
EMULATED_VECTOR4(unsigned short, ushort4, 8)
EMULATED_VECTOR2(int, int2, 8)
EMULATED_VECTOR3(int, int3, 4)
EMULATED_VECTOR4(int, int4, 16)
EMULATED_VECTOR2(unsigned, uint2, 8)
EMULATED_VECTOR3(unsigned, uint3, 4)
EMULATED_VECTOR4(unsigned, uint4, 16)
EMULATED_VECTOR2(float, float2, 8)
EMULATED_VECTOR3(float, float3, 4)
EMULATED_VECTOR4(float, float4, 16)
EMULATED_VECTOR2(long long, longlong2, 16)
EMULATED_VECTOR2(unsigned long long, ulonglong2, 16)
EMULATED_VECTOR2(double, double2, 16)

struct dim3 {
    unsigned x, y, z;
};
