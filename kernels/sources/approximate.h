// Functions by the chip's own approximations, good to two units in the last place of float32 and so
// for what is rounded to 16 bits; the host has the exact ones.
#pragma once

#ifdef __CUDACC__
// exp2, flushing what is under 2^-126 to zero.
__device__ __forceinline__ float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float inverse(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#else
static inline float exp2_of(float x) { return exp2f(x); }
static inline float inverse(float x) { return 1 / x; }
#endif
