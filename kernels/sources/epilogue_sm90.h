// What becomes of the sums that a warpgroup holds (hopper.h says which thread has which). With geglu,
// groups of eight values and of their eight gates take turns, so a value and its gate lie in one
// thread from the start.
//
// Sums stay where they are, and one addend after the other joins them: a loop for each leaves the
// compiler no more loads to hold at a time than there are registers for. The output may be the residual,
// so the compiler keeps loads of the one and stores to the other in order: a row's loads come first.
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

// Of every sixteen columns a thread has `kEach` sums, for two rows `h`: two neighbours in front, two
// more kEach / 2 behind them. This makes the four neighbours of a row.
template <int kSums, int kEach>
__device__ __forceinline__ void gather_four(float (&sums)[kSums]) {
#pragma unroll
    for (int at = 0; at < kSums; at += kEach)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float *const front = sums + at + h * 2, *const back = front + kEach / 2;
            float four[4];
            swap_pairs({front[0], front[1]}, {back[0], back[1]}, four);
            front[0] = four[0], front[1] = four[1], back[0] = four[2], back[1] = four[3];
        }
}

// Adds what lies at `from`, sixteen columns apart, to row h; `columns` are those that there are.
template <int kSums, int kEach>
__device__ __forceinline__ void add_row(float (&sums)[kSums], int h, const ELEMENT* from,
                                        int columns) {
#pragma unroll
    for (int i = 0; i < kSums / kEach; i++)
        if (i * 16 < columns) {
            float *const front = sums + i * kEach + h * 2, *const back = front + kEach / 2;
            const Four more = load_four(from + i * 16);
            front[0] += low(more.pairs[0]), front[1] += high(more.pairs[0]);
            back[0] += low(more.pairs[1]), back[1] += high(more.pairs[1]);
        }
}

// Adds what each row has of its own, and stores; `first` is this thread's first of `columns`.
template <int kSums, int kEach>
__device__ __forceinline__ void store_rows(const Epilogue& with, float (&sums)[kSums],
                                           const int (&rows)[2], int first, int columns) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (rows[h] < 0) continue;
        const long long row = rows[h], image = rows[h] / with.image_rows;
        if (with.vector)
            add_row<kSums, kEach>(sums, h, with.vector + image * with.vector_stride + first,
                                  columns - first);
        if (with.residual)
            add_row<kSums, kEach>(sums, h, with.residual + row * with.residual_stride + first,
                                  columns - first);
        ELEMENT* const to = with.output + row * with.output_stride + first;
#pragma unroll
        for (int i = 0; i < kSums / kEach; i++) {
            const float *const front = sums + i * kEach + h * 2, *const back = front + kEach / 2;
            if (i * 16 < columns - first)
                store_four(to + i * 16, {front[0], front[1], back[0], back[1]});
        }
    }
}

// Sums of 64 rows and N columns from `first_column` on; `rows` are where this thread's two rows go,
// -1 for nowhere.
template <int N>
__device__ __forceinline__ void finish(const Epilogue& with, float (&sums)[N / 2],
                                       const int (&rows)[2], int first_column) {
    const int lane = threadIdx.x % 32;
    const int first = first_column + lane % 2 * 8 + lane % 4 / 2 * 4;
    gather_four<N / 2, 8>(sums);
    if (with.bias)
#pragma unroll
        for (int h = 0; h < 2; h++)
            add_row<N / 2, 8>(sums, h, with.bias + first, with.columns - first);
    store_rows<N / 2, 8>(with, sums, rows, first, with.columns);
}

// The same with geglu: N / 2 columns of results.
template <int N>
__device__ __forceinline__ void finish_geglu(const Epilogue& with, float (&sums)[N / 2],
                                             const int (&rows)[2], int first_column) {
    static_assert(N % 32 == 0, "whole pairs of groups of eight");
    const int lane = threadIdx.x % 32, own = first_column + lane % 4 * 2;
    if (with.bias)
#pragma unroll
        for (int i = 0; i < N / 16; i++)
            if (own + i * 16 < with.columns) {
                const unsigned values = load_two(with.bias + own + i * 16).pair;
                const unsigned gates = load_two(with.bias + own + i * 16 + 8).pair;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float* const at = sums + i * 8 + h * 2;
                    at[0] += low(values), at[1] += high(values);
                    at[4] += low(gates), at[5] += high(gates);
                }
            }
#pragma unroll
    for (int at = 0; at < N / 2; at += 8)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[at + j] *= gelu(sums[at + j + 4]);
    const int first = first_column / 2 + lane % 2 * 8 + lane % 4 / 2 * 4;
    gather_four<N / 2, 16>(sums);
    store_rows<N / 2, 16>(with, sums, rows, first, with.columns / 2);
}
