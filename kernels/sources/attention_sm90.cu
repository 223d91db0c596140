// Attention on sm_90a, in the design of FlashAttention-3 (Shah et al., 2024): a block has queries of
// one head, 64 for each of GROUPS warpgroups; a thread of one more brings blocks of 128 keys and
// values by TMA. Scores and weights never leave the registers.
//
// A warpgroup asks for the scores of the next keys before it weighs the values of the last ones, and
// turns those scores into weights while the values are multiplied. The warpgroups take turns at
// asking (named barriers), so that one's softmax meets the others' products. Keys come from the last
// block to the first: the one that is not full, whose surplus must be masked, is the first of all.
//
// Constants: ELEMENT, HEAD (64 or 128; smaller heads end in zeros), STAGES, GROUPS (2 or 3).
#include "kernel.h"

#include "attention.h"
#include "hopper.h"
#include "pairs.h"

enum {
    kQueries = 64 * GROUPS,  // of a block
    kKeys = 128,             // of a stage
    kParts = HEAD / 64,
    kRowBytes = 128,
    kPartBytes = kKeys * kRowBytes,  // 128 rows of 64 elements
    kTileBytes = kParts * kPartBytes,
    kQueryPartBytes = kQueries * kRowBytes,
    kQueryBytes = kParts * kQueryPartBytes,
    kWarpgroup = 128,
    kThreads = (GROUPS + 1) * kWarpgroup,
    kTurn = 2 * kWarpgroup,  // who waits for a turn, and who gives it
    kConsumerWarps = 4 * GROUPS,
    kProducerRegisters = GROUPS == 3 ? 32 : 24,
    kConsumerRegisters = GROUPS == 3 ? 160 : 240,
};
static_assert(kWarpgroup * (kProducerRegisters + GROUPS * kConsumerRegisters) <= 65536,
              "registers of a multiprocessor");

// A ring of tiles; the parity is that of the phase which ends next.
struct Ring {
    unsigned char* tiles;
    Barrier *full, *empty;
    int stage, parity;

    __device__ __forceinline__ unsigned char* tile() const { return tiles + stage * kTileBytes; }
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    __device__ __forceinline__ void fill(const TensorMap& map, int key, int head, int batch) {
        barrier_wait(empty + stage, parity ^ 1);
        barrier_expect(full + stage, kTileBytes);
        for (int part = 0; part < kParts; part++)
            load_tile(tile() + part * kPartBytes, map, full + stage, part * 64, key, head, batch);
        next();
    }
    // Waits for a tile; its place in the ring.
    __device__ __forceinline__ int take() {
        barrier_wait(full + stage, parity);
        const int taken = stage;
        next();
        return taken;
    }
    // Once for each warp.
    __device__ __forceinline__ void give_back(int taken) const {
        if (threadIdx.x % 32 == 0) barrier_arrive(empty + taken);
    }
};

// Two rows of a thread: the largest score and the sum of the weights so far, of its own columns.
struct Softmax {
    float most[2], sum[2];

    // Scores become weights; `shrink` is what all sums so far are to be multiplied by.
    __device__ __forceinline__ void weigh(float (&scores)[kKeys / 2], float scale,
                                          float (&shrink)[2]) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float now = most[h];
#pragma unroll
            for (int i = h * 2; i < kKeys / 2; i += 4)
                now = fmaxf(now, fmaxf(scores[i], scores[i + 1]));
            now = fmaxf(now, __shfl_xor_sync(0xFFFFFFFFu, now, 1));
            now = fmaxf(now, __shfl_xor_sync(0xFFFFFFFFu, now, 2));
            shrink[h] = exp2_of((most[h] - now) * scale);
            most[h] = now;
            const float base = now * scale;
            float added = 0;
#pragma unroll
            for (int i = h * 2; i < kKeys / 2; i += 4)
#pragma unroll
                for (int e = i; e < i + 2; e++) {
                    scores[e] = exp2_of(scores[e] * scale - base);
                    added += scores[e];
                }
            sum[h] = sum[h] * shrink[h] + added;
        }
    }
};

// Sums of products as the left factor of the next product.
__device__ __forceinline__ void to_fragments(const float (&weights)[kKeys / 2],
                                             unsigned (&fragments)[kKeys / 16][4]) {
#pragma unroll
    for (int i = 0; i < kKeys / 16; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            fragments[i][j] =
                pack<ELEMENT>(weights[i * 8 + j * 2], weights[i * 8 + j * 2 + 1]);
}

__device__ __forceinline__ void score(float (&scores)[kKeys / 2], Descriptor queries,
                                      Descriptor keys) {
#pragma unroll
    for (int i = 0; i < HEAD / 16; i++) {
        const int part = i / 4, step = i % 4 * 32;
        wgmma<ELEMENT, kKeys>(scores, queries + (part * kQueryPartBytes + step) / 16,
                              keys + (part * kPartBytes + step) / 16, i > 0);
    }
    wgmma_commit();
}

__device__ __forceinline__ void add_values(float (&sums)[HEAD / 2],
                                           const unsigned (&weights)[kKeys / 16][4],
                                           Descriptor values, int accumulate) {
#pragma unroll
    for (int i = 0; i < kKeys / 16; i++)
        wgmma_across<ELEMENT, HEAD>(sums, weights[i], values + i * 16 * kRowBytes / 16,
                                    i > 0 || accumulate);
    wgmma_commit();
}

// grid (blocks of queries, heads, batch); maps of q [batch, heads, queries, head_size], k and v
// [batch, heads, keys, head_size], innermost first, boxes of kQueries and of 128 rows by 64; out by
// its strides
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    attention_sm90(TENSOR_MAP(q), TENSOR_MAP(k), TENSOR_MAP(v), ELEMENT* out, int queries, int keys,
                   int head_size, int out_batch, int out_token, int out_head, float scale) {
    DYNAMIC_SHARED(memory);
    unsigned char* const key_tiles = memory + kQueryBytes;
    unsigned char* const value_tiles = key_tiles + STAGES * kTileBytes;
    Barrier* const barriers = reinterpret_cast<Barrier*>(value_tiles + STAGES * kTileBytes);
    Barrier* const query_there = barriers + 4 * STAGES;
    Ring key_ring{key_tiles, barriers, barriers + STAGES, 0, 0};
    Ring value_ring{value_tiles, barriers + 2 * STAGES, barriers + 3 * STAGES, 0, 0};
    const int head = blockIdx.y, batch = blockIdx.z, first = blockIdx.x * kQueries;
    const int steps = (keys + kKeys - 1) / kKeys;
    if (threadIdx.x == 0) {
        require_aligned(memory);
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_begin(key_ring.full + stage, 1);
            barrier_begin(key_ring.empty + stage, kConsumerWarps);
            barrier_begin(value_ring.full + stage, 1);
            barrier_begin(value_ring.empty + stage, kConsumerWarps);
        }
        barrier_begin(query_there, 1);
        publish_barriers();
        prefetch_map(q);
        prefetch_map(k);
        prefetch_map(v);
    }
    __syncthreads();
    wait_for_predecessor();

    const int group = threadIdx.x / kWarpgroup;
    if (group == 0) {
        shrink_registers<kProducerRegisters>();
        if (threadIdx.x == 0) {
            barrier_expect(query_there, kQueryBytes);
            for (int part = 0; part < kParts; part++)
                load_tile(memory + part * kQueryPartBytes, q, query_there, part * 64, first, head,
                          batch);
            for (int step = steps - 1; step >= 0; step--) {
                key_ring.fill(k, step * kKeys, head, batch);
                value_ring.fill(v, step * kKeys, head, batch);
            }
            release_successor();
        }
    } else {
        grow_registers<kConsumerRegisters>();
        const int own = group, other = group % GROUPS + 1;  // named barriers: each warpgroup's turn
        const Descriptor own_queries =
            rows_of_128(window_address(memory) + (group - 1) * 64 * kRowBytes);
        const Descriptor all_keys = rows_of_128(window_address(key_tiles));
        const Descriptor all_values = columns_of_128(window_address(value_tiles), kPartBytes);
        float scores[kKeys / 2], sums[HEAD / 2], shrink[2];
        unsigned weights[kKeys / 16][4];
        Softmax softmax{{minus_infinity(), minus_infinity()}, {0, 0}};

        if (group == GROUPS) group_arrive(other, kTurn);  // the first turn is the first one's
        barrier_wait(query_there, 0);
        int taken = key_ring.take();
        group_barrier(own, kTurn);
        settle(scores);
        wgmma_fence();
        score(scores, own_queries, all_keys + taken * (kTileBytes / 16));
        if (group < GROUPS || steps > 1) group_arrive(other, kTurn);
        wgmma_wait<0>();
        settle(scores);
        key_ring.give_back(taken);
        const int there = keys - (steps - 1) * kKeys;  // keys of the last block
        if (there < kKeys) {
#pragma unroll
            for (int i = 0; i < kKeys / 2; i++) {
                const int key = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
                if (key >= there) scores[i] = minus_infinity();
            }
        }
        softmax.weigh(scores, scale, shrink);
        to_fragments(scores, weights);

        for (int step = 1; step < steps; step++) {
            taken = key_ring.take();
            group_barrier(own, kTurn);
            settle(scores);
            wgmma_fence();
            score(scores, own_queries, all_keys + taken * (kTileBytes / 16));
            const int values = value_ring.take();
            settle(sums);
            settle(weights);
            wgmma_fence();
            add_values(sums, weights, all_values + values * (kTileBytes / 16), step > 1);
            // The last turn of the last warpgroup is followed by none of the first.
            if (group < GROUPS || step + 1 < steps) group_arrive(other, kTurn);
            wgmma_wait<1>();
            settle(scores);
            key_ring.give_back(taken);
            softmax.weigh(scores, scale, shrink);
            // A wait that goes on at once, and that the assembler moves nothing across: else it puts
            // the next one before the softmax, which then meets no product of this warpgroup.
            settle(scores);
            barrier_wait(query_there, 0);
            wgmma_wait<0>();
            settle(sums);
            value_ring.give_back(values);
#pragma unroll
            for (int i = 0; i < HEAD / 2; i++) sums[i] *= shrink[i % 4 / 2];
            to_fragments(scores, weights);
        }
        const int values = value_ring.take();
        settle(sums);
        settle(weights);
        wgmma_fence();
        add_values(sums, weights, all_values + values * (kTileBytes / 16), steps > 1);
        wgmma_wait<0>();
        settle(sums);

        float factors[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float total = softmax.sum[h];
            total += __shfl_xor_sync(0xFFFFFFFFu, total, 1);
            total += __shfl_xor_sync(0xFFFFFFFFu, total, 2);
            factors[h] = inverse(total);
        }
        const int lane = threadIdx.x % 32, own_column = lane % 2 * 8 + lane % 4 / 2 * 4;
        const int row =
            first + (group - 1) * 64 + threadIdx.x % kWarpgroup / 32 * 16 + lane / 4;
        ELEMENT* const to =
            out + (long long)batch * out_batch + (long long)head * out_head + own_column;
#pragma unroll
        for (int i = 0; i < HEAD / 16; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int at = i * 8 + h * 2;
                float four[4];
                swap_pairs({sums[at], sums[at + 1]}, {sums[at + 4], sums[at + 5]}, four);
#pragma unroll
                for (int j = 0; j < 4; j++) four[j] *= factors[h];
                if (row + h * 8 < queries && i * 16 + own_column < head_size)
                    store_four(to + (long long)(row + h * 8) * out_token + i * 16, four);
            }
    }
}
HOST_KERNEL(attention_sm90)
