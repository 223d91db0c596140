// Flash attention for heads so wide that a warp's registers do not hold them: the VAE's single head
// of 512. A warp has the scores of 32 queries with a quarter of the keys, and the results of 32
// queries in a quarter of the columns; weights and maxima pass between the four by shared memory.
//
// Keys come in slices of 64 columns, values in slices of 16 keys, through one ring of STAGES. A block
// has GROUPS x 32 queries, all of them in shared memory.
#include "kernel.h"
#include "vector.h"
#include "attention.h"
#include "attention_warp.h"

enum {
    kQuarters = 4,
    kWarps = GROUPS * kQuarters,
    kThreads = kWarps * 32,
    kQueries = GROUPS * 32,
    kTiles = 2,                        // of 16 queries, for a warp
    kKeys = 128,                       // of a step
    kKeySlice = 64,                    // columns
    kValueSlice = 16,                  // keys
    kSlices = HEAD / kKeySlice,        // of a step's keys; of its values
    kValueSlices = kKeys / kValueSlice,
    kOwnKeys = kKeys / kQuarters,
    kOwnColumns = HEAD / kQuarters,
    kBytes = kRowBytes<HEAD>,          // a row of queries or values
    kSliceBytes = kRowBytes<kKeySlice>,
    kWeightBytes = kRowBytes<kKeys>,
    kStageBytes = kKeys * kSliceBytes > kValueSlice * kBytes ? kKeys * kSliceBytes
                                                             : kValueSlice * kBytes,
    // Places in dynamic shared memory.
    kRing = kQueries * kBytes,
    kWeights = kRing + STAGES * kStageBytes,
    kMaxima = kWeights + kQueries * kWeightBytes,  // [kQueries, kQuarters] float; at last the sums
};
static_assert(SHARED_BYTES == kMaxima + kQueries * kQuarters * 4, "as the launch says");

// The slices of keys and values in the order of their use.
struct Slices {
    Rows<ELEMENT> keys, values;
    SharedAddress ring;
    int end, head_size;

    __device__ __forceinline__ void begin_copy(int slice) const {
        const int key = slice / (kSlices + kValueSlices) * kKeys;
        const int part = slice % (kSlices + kValueSlices);
        const SharedAddress to = ring + slice % STAGES * kStageBytes;
        if (key < end && part < kSlices)
            stage_rows<kKeySlice, kKeys, kThreads>(to, keys, key, part * kKeySlice, head_size,
                                                   threadIdx.x);
        else if (key < end)
            stage_rows<HEAD, kValueSlice, kThreads>(
                to, values, key + (part - kSlices) * kValueSlice, 0, head_size, threadIdx.x);
        commit_copies();
    }
    // Waits for a slice, and begins to copy the one that takes the place of the one before it.
    __device__ __forceinline__ SharedAddress await(int slice) const {
        wait_copies<STAGES - 2>();
        __syncthreads();
        begin_copy(slice + STAGES - 1);
        return ring + slice % STAGES * kStageBytes;
    }
};

extern "C" __global__ void __launch_bounds__(kThreads, 1)
    attention(const ELEMENT* q, const ELEMENT* k, const ELEMENT* v, ELEMENT* out, int queries,
              int keys, int head_size, int causal, int q_batch, int q_token, int q_head,
              int k_batch, int k_token, int k_head, int v_batch, int v_token, int v_head,
              int out_batch, int out_token, int out_head, float scale) {
    DYNAMIC_SHARED(shared);
    release_successor();
    wait_for_predecessor();
    const SharedAddress base = shared_address(shared);
    const int lane = threadIdx.x % 32;
    const int quarter = threadIdx.x / 32 % kQuarters;
    const int own_row = threadIdx.x / 32 / kQuarters * 32;  // of the block's queries
    const int first = blockIdx.x * kQueries;
    const int end = visible_keys(first + kQueries - 1, keys, causal);
    const Rows<ELEMENT> query_rows = {q + head_offset(q_batch, q_head), q_token, queries};
    const Slices slices = {{k + head_offset(k_batch, k_head), k_token, keys},
                           {v + head_offset(v_batch, v_head), v_token, keys},
                           base + kRing,
                           end,
                           head_size};
    float* const maxima = reinterpret_cast<float*>(shared + kMaxima);
    const SharedAddress own_queries = base + own_row * kBytes + left_place<kBytes>();
    const SharedAddress own_weights =
        base + kWeights + own_row * kWeightBytes + left_place<kWeightBytes>();

    stage_rows<HEAD, kQueries, kThreads>(base, query_rows, first, 0, head_size, threadIdx.x);
    for (int slice = 0; slice < STAGES - 1; slice++) slices.begin_copy(slice);

    float result[kTiles][kOwnColumns / 8][4] = {};
    float most[kTiles][2], sum[kTiles][2] = {};
    for (int i = 0; i < kTiles; i++) most[i][0] = most[i][1] = minus_infinity();

    int slice = 0;
    for (int key = 0; key < end; key += kKeys) {
        float score[kTiles][kOwnKeys / 8][4] = {};
#pragma unroll 1
        for (int part = 0; part < kSlices; part++) {
            const SharedAddress own = slices.await(slice++) + quarter * kOwnKeys * kSliceBytes +
                                      keys_place<kSliceBytes>();
#pragma unroll
            for (int step = 0; step < kKeySlice / 16; step++) {
                unsigned query[kTiles][4];
#pragma unroll
                for (int i = 0; i < kTiles; i++)
                    load_matrices(query[i], own_queries + i * 16 * kBytes + part * kKeySlice * 2 +
                                                step * 32);
#pragma unroll
                for (int group = 0; group < kOwnKeys / 8; group += 2) {
                    unsigned row[4];
                    load_matrices(row, own + group * 8 * kSliceBytes + step * 32);
#pragma unroll
                    for (int i = 0; i < kTiles; i++) {
                        multiply_add<ELEMENT>(score[i][group], query[i], row[0], row[1]);
                        multiply_add<ELEMENT>(score[i][group + 1], query[i], row[2], row[3]);
                    }
                }
            }
        }

        // Maxima over this warp's keys, then over those of all four.
#pragma unroll
        for (int i = 0; i < kTiles; i++)
#pragma unroll
            for (int below = 0; below < 2; below++) {
                const int row = own_row + i * 16 + below * 8 + lane / 4;
                const int left = visible_keys(first + row, keys, causal) - key -
                                 quarter * kOwnKeys - lane % 4 * 2;
                float now = most[i][below];
#pragma unroll
                for (int group = 0; group < kOwnKeys / 8; group++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float& own = score[i][group][below * 2 + e];
                        if (group * 8 + e >= left) own = minus_infinity();
                        now = fmaxf(now, own);
                    }
                now = fmaxf(now, __shfl_xor_sync(0xFFFFFFFFu, now, 1));
                now = fmaxf(now, __shfl_xor_sync(0xFFFFFFFFu, now, 2));
                if (lane % 4 == 0) maxima[row * kQuarters + quarter] = now;
            }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kTiles; i++)
#pragma unroll
            for (int below = 0; below < 2; below++) {
                const int row = own_row + i * 16 + below * 8 + lane / 4;
                float now = maxima[row * kQuarters];
#pragma unroll
                for (int other = 1; other < kQuarters; other++)
                    now = fmaxf(now, maxima[row * kQuarters + other]);
                const float shrink = exp2_of((most[i][below] - now) * scale);
                const float base = now * scale;
                most[i][below] = now;
                sum[i][below] *= shrink;  // Of this thread's keys only, until the end.
#pragma unroll
                for (int column = 0; column < kOwnColumns / 8; column++) {
                    result[i][column][below * 2] *= shrink;
                    result[i][column][below * 2 + 1] *= shrink;
                }
#pragma unroll
                for (int group = 0; group < kOwnKeys / 8; group++) {
                    const float low = exp2_of(fmaf(score[i][group][below * 2], scale, -base));
                    const float high = exp2_of(fmaf(score[i][group][below * 2 + 1], scale, -base));
                    sum[i][below] += low + high;
                    const int place = kWeights + row * kWeightBytes +
                                      (quarter * kOwnKeys + group * 8 + lane % 4 * 2) * 2;
                    *reinterpret_cast<unsigned*>(shared + place) = pack<ELEMENT>(low, high);
                }
            }

#pragma unroll 1
        for (int part = 0; part < kValueSlices; part++) {
            const SharedAddress own =
                slices.await(slice++) + quarter * kOwnColumns * 2 + left_place<kBytes>();
            unsigned weight[kTiles][4];
#pragma unroll
            for (int i = 0; i < kTiles; i++)
                load_matrices(weight[i], own_weights + i * 16 * kWeightBytes + part * 32);
#pragma unroll
            for (int column = 0; column < kOwnColumns / 8; column += 2) {
                unsigned value[4];
                load_matrices<true>(value, own + column * 16);
#pragma unroll
                for (int i = 0; i < kTiles; i++) {
                    multiply_add<ELEMENT>(result[i][column], weight[i], value[0], value[1]);
                    multiply_add<ELEMENT>(result[i][column + 1], weight[i], value[2], value[3]);
                }
            }
        }
    }

    // Sums of all four; the results leave by way of the queries' place, 16 bytes a thread.
#pragma unroll
    for (int i = 0; i < kTiles; i++)
#pragma unroll
        for (int below = 0; below < 2; below++) {
            float total = sum[i][below];
            total += __shfl_xor_sync(0xFFFFFFFFu, total, 1);
            total += __shfl_xor_sync(0xFFFFFFFFu, total, 2);
            const int row = own_row + i * 16 + below * 8 + lane / 4;
            if (lane % 4 == 0) maxima[row * kQuarters + quarter] = total;
        }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTiles; i++)
#pragma unroll
        for (int below = 0; below < 2; below++) {
            const int row = own_row + i * 16 + below * 8 + lane / 4;
            float total = 0;
#pragma unroll
            for (int each = 0; each < kQuarters; each++) total += maxima[row * kQuarters + each];
            const float share = 1 / total;
#pragma unroll
            for (int column = 0; column < kOwnColumns / 8; column++) {
                const int place =
                    row * kBytes + (quarter * kOwnColumns + column * 8 + lane % 4 * 2) * 2;
                *reinterpret_cast<unsigned*>(shared + place) =
                    pack<ELEMENT>(result[i][column][below * 2] * share,
                                  result[i][column][below * 2 + 1] * share);
            }
        }
    __syncthreads();
    out += head_offset(out_batch, out_head);
    for (int piece = threadIdx.x; piece < kQueries * HEAD / 8; piece += kThreads) {
        const int row = piece / (HEAD / 8), column = piece % (HEAD / 8) * 8;
        if (first + row < queries && column < head_size)
            *reinterpret_cast<Vector<ELEMENT>*>(out + (long long)(first + row) * out_token +
                                                column) =
                *reinterpret_cast<const Vector<ELEMENT>*>(shared + row * kBytes + column * 2);
    }
}
HOST_KERNEL(attention)
