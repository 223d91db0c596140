// Layer normalisation (Ba et al., 2016) of each row, held in registers between its two passes.
#include "kernel.h"
#include "reduce.h"
#include "vector.h"

enum { kMostThreads = 256 };

// grid (rows), one thread for eight columns; the block is rounded up to whole warps
extern "C" __global__ void __launch_bounds__(kMostThreads)
    layer_norm(const ELEMENT* input, const ELEMENT* weight, const ELEMENT* bias, ELEMENT* output,
               int columns, float epsilon) {
    release_successor();
    wait_for_predecessor();
    __shared__ float scratch[kMostThreads / kWarp];
    const long long row = (long long)blockIdx.x * columns;
    const int first = threadIdx.x * kVector;
    const bool inside = first < columns;

    float x[kVector];
    float sum = 0;
    Vector<ELEMENT> w = {}, b = {};  // loaded with the row: one trip to memory, not two
    if (inside) {
        w = *reinterpret_cast<const Vector<ELEMENT>*>(weight + first);
        b = *reinterpret_cast<const Vector<ELEMENT>*>(bias + first);
        const Vector<ELEMENT> loaded =
            *reinterpret_cast<const Vector<ELEMENT>*>(input + row + first);
#pragma unroll
        for (int i = 0; i < kVector; i++) sum += x[i] = to_float(loaded.values[i]);
    }
    const float mean = block_sum(sum, scratch) / columns;

    float square = 0;
    if (inside) {
#pragma unroll
        for (int i = 0; i < kVector; i++) {
            x[i] -= mean;
            square += x[i] * x[i];
        }
    }
    const float scale = 1 / sqrtf(block_sum(square, scratch) / columns + epsilon);

    if (inside) {
        Vector<ELEMENT> out;
#pragma unroll
        for (int i = 0; i < kVector; i++)
            store(out.values + i, x[i] * scale * to_float(w.values[i]) + to_float(b.values[i]));
        *reinterpret_cast<Vector<ELEMENT>*>(output + row + first) = out;
    }
}
HOST_KERNEL(layer_norm)
