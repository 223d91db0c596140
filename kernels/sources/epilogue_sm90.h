// What becomes of the sums that a warpgroup holds (hopper.h says which thread has which). With geglu,
// groups of eight values and of their eight gates take turns, so a value and its gate lie in one
// thread from the start.
#pragma once
#include "activation.h"
#include "pairs.h"

struct Epilogue {
    const ELEMENT* bias;      // [columns] or null
    const ELEMENT* vector;    // [images, columns] or null
    const ELEMENT* residual;  // as the output, or null
    ELEMENT* output;          // [rows, columns], or half as many columns with geglu
    int columns, image_rows, vector_stride, residual_stride, output_stride;
};

// Sums of 64 rows and N columns from `first_column` on; `rows` are where this thread's two rows go,
// -1 for nowhere. Loads come in batches before the stores: the output may be the residual, so the
// compiler must keep them in order.
template <int N>
__device__ __forceinline__ void finish(const Epilogue& with, const float (&sums)[N / 2],
                                       const int (&rows)[2], int first_column) {
    enum { kPairs = N / 16, kBatch = kPairs % 5 ? 4 : 5 };  // more would spill
    static_assert(kPairs % kBatch == 0, "whole batches");
    const int lane = threadIdx.x % 32, own_column = lane % 2 * 8 + lane % 4 / 2 * 4;
    const Four nothing{{0, 0}};
#pragma unroll
    for (int begin = 0; begin < kPairs; begin += kBatch) {
        Four bias[kBatch], vector[2][kBatch], residual[2][kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; i++) {
            const int column = first_column + (begin + i) * 16 + own_column;
            const bool inside = column < with.columns;
            bias[i] = with.bias && inside ? load_four(with.bias + column) : nothing;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const bool there = inside && rows[h] >= 0;
                const long long image = rows[h] / with.image_rows, row = rows[h];
                vector[h][i] = with.vector && there
                                   ? load_four(with.vector + image * with.vector_stride + column)
                                   : nothing;
                residual[h][i] =
                    with.residual && there
                        ? load_four(with.residual + row * with.residual_stride + column)
                        : nothing;
            }
        }
#pragma unroll
        for (int i = 0; i < kBatch; i++) {
            const int column = first_column + (begin + i) * 16 + own_column;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int at = (begin + i) * 8 + h * 2;
                float four[4];
                swap_pairs({sums[at], sums[at + 1]}, {sums[at + 4], sums[at + 5]}, four);
                add(four, bias[i]);
                add(four, vector[h][i]);
                add(four, residual[h][i]);
                if (column < with.columns && rows[h] >= 0)
                    store_four(with.output + (long long)rows[h] * with.output_stride + column, four);
            }
        }
    }
}

// The same with geglu: N / 2 columns of results.
template <int N>
__device__ __forceinline__ void finish_geglu(const Epilogue& with, const float (&sums)[N / 2],
                                             const int (&rows)[2], int first_column) {
    enum { kPairs = N / 32, kBatch = APART ? 1 : kPairs % 5 ? 2 : 5 };
    static_assert(N % 32 == 0 && kPairs % kBatch == 0, "whole batches of pairs of groups of eight");
    const int lane = threadIdx.x % 32, own_column = lane % 2 * 8 + lane % 4 / 2 * 4;
#pragma unroll
    for (int begin = 0; begin < kPairs; begin += kBatch) {
        Two value_bias[2 * kBatch], gate_bias[2 * kBatch];
        Four residual[2][kBatch];
#pragma unroll
        for (int j = 0; j < 2 * kBatch; j++) {
            const int column = first_column + (begin * 2 + j) * 16 + lane % 4 * 2;
            const bool inside = with.bias && column < with.columns;
            value_bias[j] = inside ? load_two(with.bias + column) : Two{0};
            gate_bias[j] = inside ? load_two(with.bias + column + 8) : Two{0};
        }
#pragma unroll
        for (int i = 0; i < kBatch; i++) {
            const int column = first_column / 2 + (begin + i) * 16 + own_column;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const bool there = with.residual && column < with.columns / 2 && rows[h] >= 0;
                const long long row = rows[h];
                residual[h][i] = there
                                     ? load_four(with.residual + row * with.residual_stride + column)
                                     : Four{{0, 0}};
            }
        }
#pragma unroll
        for (int i = 0; i < kBatch; i++) {
            const int column = first_column / 2 + (begin + i) * 16 + own_column;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float results[2][2];
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const int at = ((begin + i) * 2 + j) * 8 + h * 2;
                    const unsigned values = value_bias[i * 2 + j].pair;
                    const unsigned gates = gate_bias[i * 2 + j].pair;
                    results[j][0] = (sums[at] + low(values)) * gelu(sums[at + 4] + low(gates));
                    results[j][1] = (sums[at + 1] + high(values)) * gelu(sums[at + 5] + high(gates));
                }
                float four[4];
                swap_pairs(results[0], results[1], four);
                add(four, residual[h][i]);
                if (column < with.columns / 2 && rows[h] >= 0)
                    store_four(with.output + (long long)rows[h] * with.output_stride + column, four);
            }
        }
    }
}
