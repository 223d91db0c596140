// Sums over a warp and a block, in one order whatever the scheduling: a replay gives the same bits.
#pragma once

enum { kWarp = 32 };

// The sum, to every thread of the warp.
__device__ __forceinline__ float warp_sum(float value) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
    return value;
}

// The sum, to every thread of a one-dimensional block of whole warps. `scratch` holds a number for
// each warp.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
    value = warp_sum(value);
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
    __syncthreads();
    float sum = 0;
    for (int warp = 0; warp < int(blockDim.x / kWarp); warp++) sum += scratch[warp];
    __syncthreads();
    return sum;
}
