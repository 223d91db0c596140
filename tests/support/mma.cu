// One warp's products, its loads one by one, and what breaks their rules, for the test of mma.h.
#include "kernel.h"
#include "mma.h"

enum { kLanes = 32 };

// a [16, 16] and w [8, 16] through shared memory to c [16, 8]; TRANSPOSED takes w as B's rows, [16, 8]
extern "C" __global__ void product(const ELEMENT* a, const ELEMENT* w, float* c) {
    DYNAMIC_SHARED(memory);
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    const SharedAddress place = shared_address(memory);
    copy_async(place + lane * 16, a + lane * 8, true);
    commit_copies();
    copy_async(place + 512 + lane % 16 * 16, w + lane % 16 * 8, true);
    commit_copies();
    wait_copies<WAITED>();
    __syncwarp();
    unsigned x[4], y[2];
    load_matrices(x, place + lane % 16 * 32 + lane / 16 * 16);
    if (TRANSPOSED)
        load_matrices<true>(y, place + 512 + lane % 16 * 16);
    else
        load_matrices(y, place + 512 + lane % 8 * 32 + lane / 8 % 2 * 16);
    float sum[4] = {c[g * 8 + 2 * t], c[g * 8 + 2 * t + 1], c[g * 8 + 64 + 2 * t],
                    c[g * 8 + 64 + 2 * t + 1]};
    multiply_add<ELEMENT>(sum, x, y[0], y[1]);
    for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}
HOST_KERNEL(product)

// The registers of ldmatrix: four 8 x 8 matrices [4, 8, 8] to [32, 4], then transposed to [32, 4]
extern "C" __global__ void fragments(const ELEMENT* matrices, unsigned* plain,
                                     unsigned* transposed) {
    DYNAMIC_SHARED(memory);
    const int lane = threadIdx.x;
    const SharedAddress place = shared_address(memory) + lane * 16;
    copy_async(place, matrices + lane * 8, lane != 9);
    commit_copies();
    wait_copies<0>();
    __syncwarp();
    unsigned found[4];
    load_matrices(found, place);
    for (int i = 0; i < 4; i++) plain[lane * 4 + i] = found[i];
    load_matrices<true>(found, place);
    for (int i = 0; i < 4; i++) transposed[lane * 4 + i] = found[i];
}
HOST_KERNEL(fragments)

// Pairs of floats [32, 2] to packed registers
extern "C" __global__ void packed(const float* pairs, unsigned* out) {
    out[threadIdx.x] = pack<ELEMENT>(pairs[threadIdx.x * 2], pairs[threadIdx.x * 2 + 1]);
}
HOST_KERNEL(packed)

extern "C" __global__ void outside(unsigned* out) {
    DYNAMIC_SHARED(memory);
    load_matrices(reinterpret_cast<unsigned(&)[2]>(*out),
                  shared_address(memory) + threadIdx.x % 16 * 16);
}
HOST_KERNEL(outside)

extern "C" __global__ void crooked(unsigned* out) {
    DYNAMIC_SHARED(memory);
    load_matrices(reinterpret_cast<unsigned(&)[2]>(*out), shared_address(memory) + 8);
}
HOST_KERNEL(crooked)

extern "C" __global__ void past_the_end(unsigned* out) {
    DYNAMIC_SHARED(memory);
    memory[64 + threadIdx.x] = 1;
    *out = memory[64];
}
HOST_KERNEL(past_the_end)

extern "C" __global__ void apart(unsigned* out) {
    if (threadIdx.x < 16)
        __syncwarp();
    else
        *out = __shfl_xor_sync(0xFFFFFFFFu, 1u, 1);
}
HOST_KERNEL(apart)
