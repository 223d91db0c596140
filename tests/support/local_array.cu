// A kernel with a local array that cannot live in registers: its stack frame must be seen.
#include "kernel.h"

extern "C" __global__ void local_array(float* values, int at) {
    float local[64];
    for (int i = 0; i < 64; i++) local[i] = 0;
    for (int i = 0; i < at; i++) local[unsigned(values[i]) % 64] += i;
    for (int i = 0; i < 64; i++) values[i + at] = local[i];
}
HOST_KERNEL(local_array)
