// bfloat16, the upper half of a float32, without cuda_bf16.h: widening is a shift; narrowing rounds
// to nearest, ties to even, and every NaN becomes the one that cvt.rn.bf16.f32 gives.
#pragma once

struct bfloat16 {
    unsigned short bits;
};

#ifdef __CUDACC__
__device__ __forceinline__ float to_float(bfloat16 value) {
    return __uint_as_float(unsigned(value.bits) << 16);
}
__device__ __forceinline__ void store(bfloat16* address, float value) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    address->bits = bits;
}
#else
static inline float to_float(bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}
static inline void store(bfloat16* address, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {
        address->bits = 0x7FFFu;
        return;
    }
    address->bits = uint16_t((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}
#endif
