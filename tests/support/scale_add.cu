// The kernel of the device layer's own tests: values = scale * values + addend, where it is there.
#include "kernel.h"

extern "C" __global__ void scale_add(float* values, const float* addend, int count, float scale) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) values[i] = values[i] * scale + (addend ? addend[i] : 0.0f);
}
HOST_KERNEL(scale_add)
