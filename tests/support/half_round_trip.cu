// Both conversions of half.h or bfloat16.h, for their test.
#include "kernel.h"

extern "C" __global__ void half_round_trip(const ELEMENT* halves, float* widened, const float* floats,
                                           ELEMENT* narrowed, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    widened[i] = to_float(halves[i]);
    store(narrowed + i, floats[i]);
}
HOST_KERNEL(half_round_trip)
