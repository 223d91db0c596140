// Flash attention of one block: kWarps warps with kTiles x 16 queries each; keys and values stream
// through shared memory, kKeys at a time, the next while these are worked on. Scores wait for keys
// only, results for values: two barriers a step.
#pragma once

#include "attention_warp.h"

template <class T, int kHead, int kWarps, int kTiles, int kKeys>
struct Stream {
    static constexpr int kThreads = kWarps * 32;
    static constexpr int kQueries = kWarps * kTiles * 16;
    static constexpr int kStage = kKeys * kRowBytes<kHead>;
    // The queries come first to where values come later, and leave from there.
    static constexpr int kValueRows = kQueries > 2 * kKeys ? kQueries : 2 * kKeys;
    static constexpr int kSharedBytes = 2 * kStage + kValueRows * kRowBytes<kHead>;

    __device__ __forceinline__ static void run(unsigned char* shared, const Rows<T>& q,
                                               const Rows<T>& k, const Rows<T>& v, T* out,
                                               int out_stride, int head_size, int causal,
                                               float scale) {
        const int warp = threadIdx.x / 32, thread = threadIdx.x;
        const int first = blockIdx.x * kQueries;
        const int own = first + warp * kTiles * 16;
        const int end = visible_keys(first + kQueries - 1, k.count, causal);
        const SharedAddress keys = shared_address(shared), values = keys + 2 * kStage;
        const int own_rows = warp * kTiles * 16 * kRowBytes<kHead>;

        stage_rows<kHead, kQueries, kThreads>(values, q, first, 0, head_size, thread);
        commit_copies();
        stage_rows<kHead, kKeys, kThreads>(keys, k, 0, 0, head_size, thread);
        commit_copies();
        wait_copies<1>();
        __syncthreads();
        Warp<T, kHead, kTiles, kKeys> state;
        state.begin(values + own_rows);
        __syncthreads();
        stage_rows<kHead, kKeys, kThreads>(values, v, 0, 0, head_size, thread);
        commit_copies();

        int stage = 0;
        for (int key = 0; key < end; key += kKeys) {
            const int next = kStage - stage;
            wait_copies<1>();  // The keys are here, the values may be under way.
            __syncthreads();
            if (key + kKeys < end)
                stage_rows<kHead, kKeys, kThreads>(keys + next, k, key + kKeys, 0, head_size, thread);
            commit_copies();
            state.multiply_keys(keys + stage);
            state.mask(own, key, k.count, causal);
            state.weigh(scale);
            wait_copies<1>();
            __syncthreads();
            if (key + kKeys < end)
                stage_rows<kHead, kKeys, kThreads>(values + next, v, key + kKeys, 0, head_size, thread);
            commit_copies();
            state.multiply_values(values + stage);
            stage = next;
        }
        __syncthreads();
        state.finish(shared + 2 * kStage + own_rows, out, out_stride, own, q.count, head_size);
    }
};
