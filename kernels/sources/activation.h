// The functions between layers, in float32.
#pragma once
#include "approximate.h"

// x Phi(x), by erf as SDXL has it
__device__ __forceinline__ float gelu(float x) {
    return 0.5f * x * (1 + erff(x * 0.70710678118654752f));
}
__device__ __forceinline__ float sigmoid(float x) { return 1 / (1 + expf(-x)); }
__device__ __forceinline__ float silu(float x) { return x / (1 + expf(-x)); }
// The same for a result of 16 bits: no call, no division.
__device__ __forceinline__ float fast_silu(float x) {
    return x * inverse(1 + exp2_of(-1.4426950408889634f * x));
}
__device__ __forceinline__ float quick_gelu(float x) { return x / (1 + expf(-1.702f * x)); }
