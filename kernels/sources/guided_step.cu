// Guidance, its rescale, and the sampler's matrix: S' = weights . [S ; guided ; noise], in place;
// then the evaluation counter goes up. Sums are in double and rounded once, as the host's loop has it:
// it costs nothing beside the memory, and weights of opposite signs may be far larger than their sum.
#include "kernel.h"
#include "guided.h"
#include "reduce.h"
#include "step_table.h"

enum {
    kThreads = 256,
    kChunk = 2048,  // of guidance_statistics
};

// The squared deviation of a whole image from those of its chunks, [chunks, 4] from `partial`.
__device__ __forceinline__ float squared_deviation(const float* partial, int chunks, int elements,
                                                   float* scratch) {
    float sum = 0;
    for (int chunk = threadIdx.x; chunk < chunks; chunk += kThreads) {
        const int left = elements - chunk * kChunk;
        sum += partial[chunk * 4] * (left < kChunk ? left : kChunk);
    }
    const float mean = block_sum(sum, scratch) / elements;
    float square = 0;
    for (int chunk = threadIdx.x; chunk < chunks; chunk += kThreads) {
        const int left = elements - chunk * kChunk;
        const float off = partial[chunk * 4] - mean;
        square += partial[chunk * 4 + 1] + off * off * (left < kChunk ? left : kChunk);
    }
    return block_sum(square, scratch);
}

// grid (blocks, images); prediction [rows, images, elements], noise [draws, images, elements],
// partial [images, chunks, 4], state [K, images, elements]
extern "C" __global__ void __launch_bounds__(kThreads)
    guided_step(Cursor* cursor, const Step* steps, const ELEMENT* prediction, const float* noise,
                const float* partial, float* state, int elements, int rows) {
    __shared__ float scratch[kThreads / kWarp];
    const int index = cursor->index;
    if (index >= cursor->count) return;
    const Step* step = steps + index;
    const long long row = (long long)gridDim.y * elements;
    const long long image = (long long)blockIdx.y * elements;

    float factor = 1;
    const float rescale = step->rescale;
    if (rescale != 0 && rows > 1) {
        const int chunks = (elements + kChunk - 1) / kChunk;
        const float* mine = partial + (long long)blockIdx.y * chunks * 4;
        const float wanted = squared_deviation(mine, chunks, elements, scratch);
        const float got = squared_deviation(mine + 2, chunks, elements, scratch);
        factor = rescale * (sqrtf(wanted) / sqrtf(got)) + (1 - rescale);
    }

    const int element = blockIdx.x * kThreads + threadIdx.x;
    if (element < elements) {
        const int order = step->order;
        const float conditional = conditional_of(prediction, image + element, row, rows);
        const float guided = factor * guided_of(prediction, image + element, conditional,
                                                step->guidance, rows);
        const float drawn = step->noise >= 0 ? noise[step->noise * row + image + element] : 0;
        float latents[kMostLatents];
#pragma unroll
        for (int k = 0; k < kMostLatents; k++)
            latents[k] = k < order ? state[k * row + image + element] : 0;
#pragma unroll
        for (int k = 0; k < kMostLatents; k++) {
            if (k >= order) break;
            const double* weights = step->weights + k * kColumns;
            // A weight of zero takes nothing, not even a NaN: a column may stand for no number.
            double sum = 0;
#pragma unroll
            for (int j = 0; j < kMostLatents; j++)
                if (weights[j] != 0) sum += weights[j] * latents[j];
            if (weights[kGuided] != 0) sum += weights[kGuided] * guided;
            if (weights[kNoise] != 0) sum += weights[kNoise] * drawn;
            const float next = float(sum);
            state[k * row + image + element] = next;
            if (k == 0 && !(fabsf(next) <= 3.402823466e38f)) atomicMin(&cursor->bad, index);
        }
    }

    // Every block has read the index by the time the last one arrives.
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        const unsigned blocks = gridDim.x * gridDim.y;
        if (atomicInc(&cursor->arrived, blocks - 1) == blocks - 1) cursor->index = index + 1;
    }
}
HOST_KERNEL(guided_step)
