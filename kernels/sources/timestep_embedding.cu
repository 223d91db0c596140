// Sines and cosines of timesteps or sizes (Vaswani et al., 2017), angles in float32.
#include "kernel.h"

enum { kThreads = 256 };

// grid (blocks over width, rows), one thread for a sine and its cosine; values [rows] float32,
// frequencies [width] float32; row r of the output begins at r / inner * outer_stride + r % inner *
// inner_stride, its first half the cosines where cosine_first is 1
extern "C" __global__ void __launch_bounds__(kThreads)
    timestep_embedding(const float* values, const float* frequencies, ELEMENT* output, int width,
                       int inner, int outer_stride, int inner_stride, int cosine_first) {
    release_successor();
    wait_for_predecessor();
    const int i = blockIdx.x * kThreads + threadIdx.x, row = blockIdx.y;
    if (i >= width) return;
    const float angle = values[row] * frequencies[i];
    // Turns in float64: what is left of many whole ones is exact enough, without the tables that
    // sine and cosine keep for large angles.
    const double turns = double(angle) * 0.15915494309189533577;
    const float part = 2 * float(turns - rint(turns));
    ELEMENT* to = output + (long long)(row / inner) * outer_stride + row % inner * inner_stride;
    store(to + i, cosine_first ? cospif(part) : sinpif(part));
    store(to + width + i, cosine_first ? sinpif(part) : cospif(part));
}
HOST_KERNEL(timestep_embedding)
