// float16 without cuda_fp16.h, which NVRTC's wheel does not bring: two instructions on the device,
// and the same rounding (to nearest, ties to even) in plain C++ on the host.
#pragma once

struct half {
    unsigned short bits;
};

#ifdef __CUDACC__
__device__ __forceinline__ float to_float(half value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}
__device__ __forceinline__ void store(half* address, float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    address->bits = bits;
}
#else
static inline float to_float(half value) {
    const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16, rest = value.bits & 0x7FFFu;
    uint32_t bits;
    if (rest >= 0x7C00u) {
        bits = sign | 0x7F800000u | (rest & 0x3FFu) << 13;  // infinity, or NaN with its payload
    } else if (rest >= 0x400u) {
        bits = sign | ((rest << 13) + ((127u - 15u) << 23));
    } else {
        const float magnitude = float(rest) * 0x1p-24f;  // subnormal
        memcpy(&bits, &magnitude, 4);
        bits |= sign;
    }
    float result;
    memcpy(&result, &bits, 4);
    return result;
}
static inline void store(half* address, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000u, rest = bits & 0x7FFFFFFFu;
    uint32_t result;
    if (rest > 0x7F800000u) {
        result = 0x7FFFu;  // the NaN that cvt.rn.f16.f32 gives
        address->bits = uint16_t(result);
        return;
    }
    if (rest >= 0x47800000u) {
        result = 0x7C00u;  // 65536 and more
    } else if (rest >= 0x38800000u) {
        const uint32_t rounded = rest + 0xFFFu + (rest >> 13 & 1u);
        result = (rounded >> 13) - ((127u - 15u) << 10);  // 65520 and more become infinity here
    } else {
        float magnitude;
        memcpy(&magnitude, &rest, 4);
        result = uint32_t(nearbyintf(magnitude * 0x1p24f));
    }
    address->bits = uint16_t(sign | result);
}
#endif

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ void store(float* address, float value) { *address = value; }
