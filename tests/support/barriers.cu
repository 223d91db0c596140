// Kernels that break the rules of barriers, for the test of the host shim.
#include "kernel.h"

extern "C" __global__ void half_a_block(float* values) {
    if (threadIdx.x < 32) __syncthreads();
    values[threadIdx.x] = 0;
}
HOST_KERNEL(half_a_block)

extern "C" __global__ void half_a_warp(float* values) {
    if (threadIdx.x < 16) values[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFu, 1.0f, 1);
}
HOST_KERNEL(half_a_warp)

// Thread i reads what thread i + 1 wrote, without waiting for it.
extern "C" __global__ void no_barrier(float* values) {
    __shared__ float shared[64];
    shared[threadIdx.x] = threadIdx.x + 1;  // not 0, which shared memory may begin with
    values[threadIdx.x] = shared[(threadIdx.x + 1) % 64];
}
HOST_KERNEL(no_barrier)

extern "C" __global__ void with_barrier(float* values) {
    __shared__ float shared[64];
    shared[threadIdx.x] = threadIdx.x + 1;  // not 0, which shared memory may begin with
    __syncthreads();
    values[threadIdx.x] = shared[(threadIdx.x + 1) % 64];
}
HOST_KERNEL(with_barrier)
