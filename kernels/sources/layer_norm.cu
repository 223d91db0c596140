// Layer normalisation (Ba et al., 2016): a warp for each row, which it holds in registers.
#include "kernel.h"
#include "reduce.h"
#include "vector.h"

enum { kRows = 4, kMostVectors = 8 };  // of a block, and of a thread

// grid (rows / kRows, rounded up); input and output [rows, columns]
extern "C" __global__ void __launch_bounds__(kRows* kWarp)
    layer_norm(const ELEMENT* input, const ELEMENT* weight, const ELEMENT* bias, ELEMENT* output,
               int rows, int columns, float epsilon) {
    release_successor();
    wait_for_predecessor();
    const int lane = threadIdx.x % kWarp, row = blockIdx.x * kRows + threadIdx.x / kWarp;
    if (row >= rows) return;
    const int vectors = columns / kVector;
    const long long first = (long long)row * vectors + lane;
    const auto* const from = reinterpret_cast<const Vector<ELEMENT>*>(input) + first;
    const auto* const weights = reinterpret_cast<const Vector<ELEMENT>*>(weight) + lane;
    const auto* const biases = reinterpret_cast<const Vector<ELEMENT>*>(bias) + lane;
    auto* const to = reinterpret_cast<Vector<ELEMENT>*>(output) + first;

    Vector<ELEMENT> x[kMostVectors];  // all loads are under way at once
#pragma unroll
    for (int i = 0; i < kMostVectors; i++)
        if (lane + i * kWarp < vectors) x[i] = from[i * kWarp];
    float sum = 0, square = 0;
#pragma unroll
    for (int i = 0; i < kMostVectors; i++)
        if (lane + i * kWarp < vectors)
#pragma unroll
            for (int j = 0; j < kVector; j++) sum += to_float(x[i].values[j]);
    const float mean = warp_sum(sum) / columns;
#pragma unroll
    for (int i = 0; i < kMostVectors; i++)
        if (lane + i * kWarp < vectors)
#pragma unroll
            for (int j = 0; j < kVector; j++) {
                const float off = to_float(x[i].values[j]) - mean;
                square += off * off;
            }
    const float scale = 1 / sqrtf(warp_sum(square) / columns + epsilon);
#pragma unroll
    for (int i = 0; i < kMostVectors; i++)
        if (lane + i * kWarp < vectors) {
            const Vector<ELEMENT> w = weights[i * kWarp], b = biases[i * kWarp];
            Vector<ELEMENT> out;
#pragma unroll
            for (int j = 0; j < kVector; j++) {
                const float normal = (to_float(x[i].values[j]) - mean) * scale;
                store(out.values + j, normal * to_float(w.values[j]) + to_float(b.values[j]));
            }
            to[i * kWarp] = out;
        }
}
HOST_KERNEL(layer_norm)
