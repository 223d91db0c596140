// Both conversions of half.h, for its test.
#include "kernel.h"

extern "C" __global__ void half_round_trip(const half* halves, float* widened, const float* floats,
                                           half* narrowed, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    widened[i] = to_float(halves[i]);
    store(narrowed + i, floats[i]);
}
HOST_KERNEL(half_round_trip)
