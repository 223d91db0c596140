// Flash attention (Dao et al., 2022; Dao, 2023) of one warp: its queries, scores and results live in
// registers; keys and values pass by in shared memory.
//
// A warp has kTiles x 16 queries. In a tile, with g = lane / 4 and t = lane % 4, a thread has queries
// g and g + 8 (`below` 0 and 1), and of each 8 keys or columns the pair 2t (mma.h). The scores' place
// after the first product is that of the second's left operand, so weights never leave registers.
#pragma once

#include "mma.h"

// Rows of a head in shared memory are 16 bytes apart from a power of two: ldmatrix does not collide.
template <int kHead>
constexpr int kRowBytes = 2 * kHead + 16;

// The rows of one head of one batch, in global memory.
template <class T>
struct Rows {
    const T* first;
    int stride;  // elements
    int count;
};

// Begins to copy columns column .. column + kColumns of rows begin .. begin + kCount, by kThreads
// threads of which this is the `thread`th; zeros where a head or the rows end, so that what is masked
// is never NaN.
template <int kColumns, int kCount, int kThreads, class T>
__device__ __forceinline__ void stage_rows(SharedAddress to, const Rows<T>& rows, int begin,
                                           int column, int head_size, int thread) {
    constexpr int kPieces = kColumns / 8, kAll = kCount * kPieces;
#pragma unroll
    for (int first = 0; first < kAll; first += kThreads) {
        const int piece = first + thread;
        if (kAll % kThreads && piece >= kAll) break;
        const int row = piece / kPieces, at = piece % kPieces * 8;
        copy_async(to + row * kRowBytes<kColumns> + at * 2,
                   rows.first + (long long)(begin + row) * rows.stride + column + at,
                   begin + row < rows.count && column + at < head_size);
    }
}

// Which row of 16 bytes a thread names to ldmatrix: for a left operand of 16 x 16, and transposed
// for 16 rows of values; and for 16 rows of keys.
template <int kBytes>
__device__ __forceinline__ int left_place() {
    return threadIdx.x % 16 * kBytes + threadIdx.x / 16 % 2 * 16;
}
template <int kBytes>
__device__ __forceinline__ int keys_place() {
    return (threadIdx.x / 16 % 2 * 8 + threadIdx.x % 8) * kBytes + threadIdx.x / 8 % 2 * 16;
}

template <class T, int kHead, int kTiles, int kKeys>
struct Warp {
    static constexpr int kSteps = kHead / 16;    // of 16 columns
    static constexpr int kColumns = kHead / 8;   // groups of 8
    static constexpr int kGroups = kKeys / 8;    // of 8 keys
    static constexpr int kQueries = kTiles * 16;
    static_assert(kHead % 16 == 0 && kKeys % 16 == 0, "two groups come in one ldmatrix");

    unsigned query[kTiles][kSteps][4];
    float score[kTiles][kGroups][4];
    float result[kTiles][kColumns][4];
    float most[kTiles][2], sum[kTiles][2];  // sum: of this thread's keys only

    __device__ __forceinline__ static int lane() { return threadIdx.x % 32; }

    // Takes up queries from shared memory.
    __device__ __forceinline__ void begin(SharedAddress queries) {
        const SharedAddress own = queries + left_place<kRowBytes<kHead>>();
#pragma unroll
        for (int i = 0; i < kTiles; i++) {
#pragma unroll
            for (int step = 0; step < kSteps; step++)
                load_matrices(query[i][step], own + i * 16 * kRowBytes<kHead> + step * 32);
#pragma unroll
            for (int below = 0; below < 2; below++) {
                most[i][below] = minus_infinity();
                sum[i][below] = 0;
            }
#pragma unroll
            for (int column = 0; column < kColumns; column++)
#pragma unroll
                for (int e = 0; e < 4; e++) result[i][column][e] = 0;
        }
    }

    // score = query keys^T
    __device__ __forceinline__ void multiply_keys(SharedAddress keys) {
        const SharedAddress own = keys + keys_place<kRowBytes<kHead>>();
#pragma unroll
        for (int group = 0; group < kGroups; group += 2) {
#pragma unroll
            for (int i = 0; i < kTiles; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) score[i][group][e] = score[i][group + 1][e] = 0;
#pragma unroll
            for (int step = 0; step < kSteps; step++) {
                unsigned key[4];
                load_matrices(key, own + group * 8 * kRowBytes<kHead> + step * 32);
#pragma unroll
                for (int i = 0; i < kTiles; i++) {
                    multiply_add<T>(score[i][group], query[i][step], key[0], key[1]);
                    multiply_add<T>(score[i][group + 1], query[i][step], key[2], key[3]);
                }
            }
        }
    }

    // Hides the keys from visible(query) on; `first_query` is the warp's first, `first_key` the
    // first of those just multiplied.
    __device__ __forceinline__ void mask(int first_query, int first_key, int keys, int causal) {
        if (first_key + kKeys <= visible_keys(first_query, keys, causal)) return;
#pragma unroll
        for (int i = 0; i < kTiles; i++)
#pragma unroll
            for (int below = 0; below < 2; below++) {
                const int row = first_query + i * 16 + below * 8 + lane() / 4;
                const int left = visible_keys(row, keys, causal) - first_key - lane() % 4 * 2;
#pragma unroll
                for (int group = 0; group < kGroups; group++)
#pragma unroll
                    for (int e = 0; e < 2; e++)
                        if (group * 8 + e >= left)
                            score[i][group][below * 2 + e] = minus_infinity();
            }
    }

    // Scores become weights under the running maximum (Milakov and Gimelshein, 2018); what was
    // gathered so far shrinks with it. `scale` is positive, and holds log2(e).
    __device__ __forceinline__ void weigh(float scale) {
#pragma unroll
        for (int i = 0; i < kTiles; i++)
#pragma unroll
            for (int below = 0; below < 2; below++) {
                float now = most[i][below];
#pragma unroll
                for (int group = 0; group < kGroups; group++)
#pragma unroll
                    for (int e = below * 2; e < below * 2 + 2; e++)
                        now = fmaxf(now, score[i][group][e]);
                now = fmaxf(now, __shfl_xor_sync(0xFFFFFFFFu, now, 1));
                now = fmaxf(now, __shfl_xor_sync(0xFFFFFFFFu, now, 2));
                const float shrink = exp2_of((most[i][below] - now) * scale);
                const float base = now * scale;
                most[i][below] = now;
                float total = sum[i][below] * shrink;
#pragma unroll
                for (int group = 0; group < kGroups; group++)
#pragma unroll
                    for (int e = below * 2; e < below * 2 + 2; e++) {
                        score[i][group][e] = exp2_of(fmaf(score[i][group][e], scale, -base));
                        total += score[i][group][e];
                    }
                sum[i][below] = total;
#pragma unroll
                for (int column = 0; column < kColumns; column++)
#pragma unroll
                    for (int e = below * 2; e < below * 2 + 2; e++) result[i][column][e] *= shrink;
            }
    }

    // result += weights values
    __device__ __forceinline__ void multiply_values(SharedAddress values) {
        const SharedAddress own = values + left_place<kRowBytes<kHead>>();
#pragma unroll
        for (int group = 0; group < kGroups; group += 2) {
            unsigned weight[kTiles][4];
#pragma unroll
            for (int i = 0; i < kTiles; i++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    weight[i][e] = pack<T>(score[i][group + e / 2][e % 2 * 2],
                                           score[i][group + e / 2][e % 2 * 2 + 1]);
#pragma unroll
            for (int column = 0; column < kColumns; column += 2) {
                unsigned value[4];
                load_matrices<true>(value, own + group * 8 * kRowBytes<kHead> + column * 16);
#pragma unroll
                for (int i = 0; i < kTiles; i++) {
                    multiply_add<T>(result[i][column], weight[i], value[0], value[1]);
                    multiply_add<T>(result[i][column + 1], weight[i], value[2], value[3]);
                }
            }
        }
    }

    // Writes the warp's queries out, by way of its own rows of shared memory, which nobody reads
    // any more: 16 bytes a thread.
    __device__ __forceinline__ void finish(unsigned char* own_rows, T* out, int stride,
                                           int first_query, int queries, int head_size) {
#pragma unroll
        for (int i = 0; i < kTiles; i++)
#pragma unroll
            for (int below = 0; below < 2; below++) {
                float total = sum[i][below];
                total += __shfl_xor_sync(0xFFFFFFFFu, total, 1);
                total += __shfl_xor_sync(0xFFFFFFFFu, total, 2);
                const float share = 1 / total;
                unsigned char* const row =
                    own_rows + (i * 16 + below * 8 + lane() / 4) * kRowBytes<kHead>;
#pragma unroll
                for (int column = 0; column < kColumns; column++)
                    *reinterpret_cast<unsigned*>(row + column * 16 + lane() % 4 * 4) =
                        pack<T>(result[i][column][below * 2] * share,
                                result[i][column][below * 2 + 1] * share);
            }
        __syncwarp();
#pragma unroll
        for (int first = 0; first < kQueries * kColumns; first += 32) {
            const int piece = first + lane();
            const int row = piece / kColumns, column = piece % kColumns * 8;
            if (first_query + row < queries && column < head_size)
                *reinterpret_cast<Vector<T>*>(out + (long long)(first_query + row) * stride +
                                              column) =
                    *reinterpret_cast<const Vector<T>*>(own_rows + row * kRowBytes<kHead> +
                                                        column * 2);
        }
    }
};
