// Flash attention for heads that fit a warp's registers: constants HEAD (a multiple of 16), WARPS,
// TILES and KEYS, as in attention_stream.h.
#include "kernel.h"
#include "vector.h"
#include "attention.h"
#include "attention_stream.h"

typedef Stream<ELEMENT, HEAD, WARPS, TILES, KEYS> Block;

extern "C" __global__ void __launch_bounds__(Block::kThreads, BLOCKS)
    attention(const ELEMENT* q, const ELEMENT* k, const ELEMENT* v, ELEMENT* out, int queries,
              int keys, int head_size, int causal, int q_batch, int q_token, int q_head,
              int k_batch, int k_token, int k_head, int v_batch, int v_token, int v_head,
              int out_batch, int out_token, int out_head, float scale) {
    alignas(16) __shared__ unsigned char shared[Block::kSharedBytes];
    release_successor();
    wait_for_predecessor();
    Block::run(shared, {q + head_offset(q_batch, q_head), q_token, queries},
               {k + head_offset(k_batch, k_head), k_token, keys},
               {v + head_offset(v_batch, v_head), v_token, keys},
               out + head_offset(out_batch, out_head), out_token, head_size, causal, scale);
}
HOST_KERNEL(attention)
