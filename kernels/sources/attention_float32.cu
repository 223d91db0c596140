// Attention (Vaswani et al., 2017) in float32 by plain multiply-adds, without its matrix of scores:
// a running maximum and sum for each query (Milakov and Gimelshein, 2018; Dao et al., 2022).
//
// 16 x 16 threads: thread (x, y) has every 16th query from y, every 16th key and pair of columns
// from x. Queries and keys come in slices of columns, values in slices of keys.
#include "kernel.h"
#include "attention.h"

enum {
    kSide = 16,
    kThreads = kSide * kSide,
    kKeys = 64,                  // of a step
    kSlice = 32,                 // columns of queries and keys in shared memory
    kSliceStride = kSlice + 4,   // a row starts 4 banks on: 8 rows in one load do not collide
    kWeightStride = kKeys + 4,
    kValueKeys = 8,              // rows of values in shared memory
    kRowsEach = ROWS / kSide,
    kKeysEach = kKeys / kSide,
    kPairsEach = HEAD / (2 * kSide),
    kSliceFloats = (ROWS + kKeys) * kSliceStride,
    kValueFloats = kValueKeys * HEAD,
    kStagedFloats = kSliceFloats > kValueFloats ? kSliceFloats : kValueFloats,
};

struct alignas(16) Four {
    float values[4];
};
struct alignas(8) Two {
    float values[2];
};

// Rows first .. first + count of a head, `width` columns from `column` on; zeros past its end.
__device__ __forceinline__ void stage(float* to, int to_stride, const float* from, int stride,
                                      int first, int count, int rows, int column, int width,
                                      int head_size) {
    const int fours = width / 4;
    for (int i = threadIdx.x; i < count * fours; i += kThreads) {
        const int row = i / fours, at = i % fours * 4;
        Four loaded = {};
        if (first + row < rows && column + at < head_size)
            loaded = *reinterpret_cast<const Four*>(from + (long long)(first + row) * stride +
                                                    column + at);
        *reinterpret_cast<Four*>(to + row * to_stride + at) = loaded;
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
    attention(const float* q, const float* k, const float* v, float* out, int queries, int keys,
              int head_size, int causal, int q_batch, int q_token, int q_head, int k_batch,
              int k_token, int k_head, int v_batch, int v_token, int v_head, int out_batch,
              int out_token, int out_head, float scale) {
    alignas(16) __shared__ float staged[kStagedFloats];
    alignas(16) __shared__ float weights[ROWS * kWeightStride];
    release_successor();
    wait_for_predecessor();
    q += head_offset(q_batch, q_head);
    k += head_offset(k_batch, k_head);
    v += head_offset(v_batch, v_head);
    out += head_offset(out_batch, out_head);
    const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
    const int first = blockIdx.x * ROWS;
    const int end = visible_keys(first + ROWS - 1, keys, causal);

    float result[kRowsEach][kPairsEach][2] = {};
    float most[kRowsEach], sum[kRowsEach] = {};
    for (int i = 0; i < kRowsEach; i++) most[i] = minus_infinity();

    for (int block = 0; block < end; block += kKeys) {
        float score[kRowsEach][kKeysEach] = {};
        for (int column = 0; column < head_size; column += kSlice) {
            float* const staged_keys = staged + ROWS * kSliceStride;
            __syncthreads();
            stage(staged, kSliceStride, q, q_token, first, ROWS, queries, column, kSlice, head_size);
            stage(staged_keys, kSliceStride, k, k_token, block, kKeys, keys, column, kSlice,
                  head_size);
            __syncthreads();
            float part[kRowsEach][kKeysEach] = {};  // Of these columns; see below.
#pragma unroll
            for (int at = 0; at < kSlice; at += 4) {
                Four key[kKeysEach];
#pragma unroll
                for (int j = 0; j < kKeysEach; j++)
                    key[j] = *reinterpret_cast<const Four*>(staged_keys +
                                                            (x + j * kSide) * kSliceStride + at);
#pragma unroll
                for (int i = 0; i < kRowsEach; i++) {
                    const Four query = *reinterpret_cast<const Four*>(
                        staged + (y + i * kSide) * kSliceStride + at);
#pragma unroll
                    for (int j = 0; j < kKeysEach; j++)
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            part[i][j] += query.values[e] * key[j].values[e];
                }
            }
#pragma unroll
            for (int i = 0; i < kRowsEach; i++)
#pragma unroll
                for (int j = 0; j < kKeysEach; j++) score[i][j] += part[i][j];
        }
#pragma unroll
        for (int i = 0; i < kRowsEach; i++) {
            const int row = y + i * kSide;
            const int visible = visible_keys(first + row, keys, causal) - block;
            float now = most[i];
#pragma unroll
            for (int j = 0; j < kKeysEach; j++) {
                if (x + j * kSide >= visible) score[i][j] = minus_infinity();
                now = fmaxf(now, score[i][j]);
            }
            for (int distance = kSide / 2; distance > 0; distance /= 2)
                now = fmaxf(now, __shfl_xor_sync(0xFFFFFFFFu, now, distance));
            const float shrink = exp2_of((most[i] - now) * scale);
            const float base = now * scale;  // rounded once for all keys, so it cancels
            most[i] = now;
            float total = 0;
#pragma unroll
            for (int j = 0; j < kKeysEach; j++) {
                const float weight = exp2_of(fmaf(score[i][j], scale, -base));
                total += weight;
                weights[row * kWeightStride + x + j * kSide] = weight;
            }
            sum[i] = sum[i] * shrink + total;  // Of this thread's keys only, until the end.
#pragma unroll
            for (int j = 0; j < kPairsEach; j++) {
                result[i][j][0] *= shrink;
                result[i][j][1] *= shrink;
            }
        }
        const int left = end - block < kKeys ? end - block : kKeys;
        for (int chunk = 0; chunk < left; chunk += kValueKeys) {
            __syncthreads();
            stage(staged, HEAD, v, v_token, block + chunk, kValueKeys, keys, 0, HEAD, head_size);
            __syncthreads();
            Four weight[kRowsEach][kValueKeys / 4];
#pragma unroll
            for (int i = 0; i < kRowsEach; i++)
#pragma unroll
                for (int four = 0; four < kValueKeys / 4; four++)
                    weight[i][four] = *reinterpret_cast<const Four*>(
                        weights + (y + i * kSide) * kWeightStride + chunk + four * 4);
#pragma unroll
            for (int j = 0; j < kPairsEach; j++) {
                float part[kRowsEach][2] = {};  // Sums of sums: one long sum would round more.
#pragma unroll
                for (int key = 0; key < kValueKeys; key++) {
                    const Two value = *reinterpret_cast<const Two*>(staged + key * HEAD +
                                                                    2 * (x + j * kSide));
#pragma unroll
                    for (int i = 0; i < kRowsEach; i++)
#pragma unroll
                        for (int e = 0; e < 2; e++)
                            part[i][e] += weight[i][key / 4].values[key % 4] * value.values[e];
                }
#pragma unroll
                for (int i = 0; i < kRowsEach; i++)
#pragma unroll
                    for (int e = 0; e < 2; e++) result[i][j][e] += part[i][e];
            }
        }
    }

#pragma unroll
    for (int i = 0; i < kRowsEach; i++) {
        for (int distance = kSide / 2; distance > 0; distance /= 2)
            sum[i] += __shfl_xor_sync(0xFFFFFFFFu, sum[i], distance);
        const int query = first + y + i * kSide;
        if (query >= queries) continue;
#pragma unroll
        for (int j = 0; j < kPairsEach; j++) {
            const int column = 2 * (x + j * kSide);
            if (column >= head_size) continue;
            const Two pair = {result[i][j][0] / sum[i], result[i][j][1] / sum[i]};
            *reinterpret_cast<Two*>(out + (long long)query * out_token + column) = pair;
        }
    }
}
HOST_KERNEL(attention)
