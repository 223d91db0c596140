// Mean and squared deviation of the conditional and the guided prediction, for each chunk of an
// image: what guidance rescale needs (Lin et al., 2023, section 3.4). Two passes over registers,
// so nothing cancels; the chunks are put together in guided_step (Chan et al., 1979).
#include "kernel.h"
#include "guided.h"
#include "reduce.h"
#include "step_table.h"

enum {
    kThreads = 256,
    kEach = 8,
    kChunk = kThreads * kEach,
};

// grid (chunks, images); partial [images, chunks, 4]: mean and squared deviation, conditional
// before guided
extern "C" __global__ void __launch_bounds__(kThreads)
    guidance_statistics(const Cursor* cursor, const Step* steps, const ELEMENT* prediction,
                        float* partial, int elements, int rows) {
    __shared__ float scratch[kThreads / kWarp];
    const int index = cursor->index;
    if (index >= cursor->count || steps[index].rescale == 0 || rows == 1) return;
    const float scale = steps[index].guidance;
    const long long image = (long long)blockIdx.y * elements;
    const long long row = (long long)gridDim.y * elements;
    const int first = blockIdx.x * kChunk;
    const float count = elements - first < kChunk ? elements - first : kChunk;

    float conditional[kEach], guided[kEach];
    float conditional_sum = 0, guided_sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; i++) {
        const int element = first + i * kThreads + threadIdx.x;
        conditional[i] = guided[i] = 0;
        if (element < elements) {
            conditional[i] = conditional_of(prediction, image + element, row, rows);
            guided[i] = guided_of(prediction, image + element, conditional[i], scale, rows);
        }
        conditional_sum += conditional[i];
        guided_sum += guided[i];
    }
    const float conditional_mean = block_sum(conditional_sum, scratch) / count;
    const float guided_mean = block_sum(guided_sum, scratch) / count;

    float conditional_square = 0, guided_square = 0;
#pragma unroll
    for (int i = 0; i < kEach; i++) {
        if (first + i * kThreads + int(threadIdx.x) < elements) {
            const float c = conditional[i] - conditional_mean, g = guided[i] - guided_mean;
            conditional_square += c * c;
            guided_square += g * g;
        }
    }
    conditional_square = block_sum(conditional_square, scratch);
    guided_square = block_sum(guided_square, scratch);
    if (threadIdx.x == 0) {
        float* out = partial + ((long long)blockIdx.y * gridDim.x + blockIdx.x) * 4;
        out[0] = conditional_mean;
        out[1] = conditional_square;
        out[2] = guided_mean;
        out[3] = guided_square;
    }
}
HOST_KERNEL(guidance_statistics)
