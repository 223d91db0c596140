// Flash attention over so few keys that all of them, and their values, lie in shared memory: copied
// once for several blocks of queries, and after that no warp waits for another. For cross attention:
// 77 keys of a prompt, in steps of 80.
//
// Constants HEAD, WARPS (of 16 queries each) and KEYS (of a step); dynamic shared memory for the
// keys and values of all steps, then for the block's queries.
#include "kernel.h"
#include "vector.h"
#include "attention.h"
#include "attention_warp.h"

enum { kThreads = WARPS * 32, kQueries = WARPS * 16, kBytes = kRowBytes<HEAD> };

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    attention(const ELEMENT* q, const ELEMENT* k, const ELEMENT* v, ELEMENT* out, int queries,
              int keys, int head_size, int causal, int q_batch, int q_token, int q_head,
              int k_batch, int k_token, int k_head, int v_batch, int v_token, int v_head,
              int out_batch, int out_token, int out_head, float scale) {
    DYNAMIC_SHARED(shared);
    release_successor();
    wait_for_predecessor();
    const Rows<ELEMENT> query_rows = {q + head_offset(q_batch, q_head), q_token, queries};
    const Rows<ELEMENT> key_rows = {k + head_offset(k_batch, k_head), k_token, keys};
    const Rows<ELEMENT> value_rows = {v + head_offset(v_batch, v_head), v_token, keys};
    out += head_offset(out_batch, out_head);
    const int all_keys = (keys + KEYS - 1) / KEYS * KEYS;
    const SharedAddress staged_keys = shared_address(shared);
    const SharedAddress staged_values = staged_keys + all_keys * kBytes;
    unsigned char* const own_rows =
        shared + (2 * all_keys + threadIdx.x / 32 * 16) * kBytes;  // of this warp's queries

    for (int key = 0; key < all_keys; key += KEYS) {
        stage_rows<HEAD, KEYS, kThreads>(staged_keys + key * kBytes, key_rows, key, 0, head_size,
                                         threadIdx.x);
        stage_rows<HEAD, KEYS, kThreads>(staged_values + key * kBytes, value_rows, key, 0,
                                         head_size, threadIdx.x);
    }
    commit_copies();
    for (int block = blockIdx.x; block * kQueries < queries; block += gridDim.x) {
        const int first = block * kQueries + threadIdx.x / 32 * 16;
        stage_rows<HEAD, 16, 32>(shared_address(own_rows), query_rows, first, 0, head_size,
                                 threadIdx.x % 32);
        commit_copies();
        wait_copies<0>();
        if (block == blockIdx.x)
            __syncthreads();  // Keys and values came by all threads,
        else
            __syncwarp();  // queries by this warp's own.
        Warp<ELEMENT, HEAD, 1, KEYS> state;
        state.begin(shared_address(own_rows));
#pragma unroll 1
        for (int key = 0; key < keys; key += KEYS) {
            state.multiply_keys(staged_keys + key * kBytes);
            state.mask(first, key, keys, causal);
            state.weigh(scale);
            state.multiply_values(staged_values + key * kBytes);
        }
        __syncwarp();  // before what others of the warp read in begin() is overwritten
        state.finish(own_rows, out, out_token, first, queries, head_size);
        __syncwarp();
    }
}
HOST_KERNEL(attention)
