// Sums over a block, in one order whatever the scheduling: a replay gives the same bits.
#pragma once

enum { kWarp = 32 };

// The sum, to every thread of the block. `scratch` holds a number for each warp.
template <int kThreads>
__device__ __forceinline__ float block_sum(float value, float* scratch) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
    __syncthreads();
    float sum = 0;
    for (int warp = 0; warp < kThreads / kWarp; warp++) sum += scratch[warp];
    __syncthreads();
    return sum;
}
