// The model's input: the first latent, scaled by c_in, once for each row of guidance, cast.
#include "kernel.h"
#include "step_table.h"

enum { kThreads = 256 };

// grid (blocks, images); input [rows, images, elements], state [K, images, elements]
extern "C" __global__ void __launch_bounds__(kThreads)
    prepare(const Cursor* cursor, const Step* steps, const float* state, ELEMENT* input,
            int elements, int rows) {
    const int index = cursor->index;
    if (index >= cursor->count) return;
    const float c_in = steps[index].c_in;
    const long long image = (long long)blockIdx.y * elements;
    const long long row = (long long)gridDim.y * elements;
    const int element = blockIdx.x * kThreads + threadIdx.x;
    if (element >= elements) return;
    const float value = state[image + element] * c_in;
    for (int r = 0; r < rows; r++) store(input + r * row + image + element, value);
}
HOST_KERNEL(prepare)
