// The same flash attention as attention.cu, with the arguments that TensorRT gives a kernel of an
// ahead-of-time plugin: inputs, integers, output, in this order, and nothing else. All that a launch
// may use without an opt-in: 48 KiB of static shared memory.
//
// q and out are [batch, queries, heads, head_size] or, by head, [batch, heads, queries, head_size];
// k and v likewise; each whole, without gaps. Grid: (blocks of queries, heads, batch).
#include "kernel.h"
#include "vector.h"
#include "attention.h"
#include "attention_stream.h"

typedef Stream<ELEMENT, HEAD, WARPS, TILES, KEYS> Block;

__device__ __forceinline__ float float_of(int bits) {
#ifdef __CUDACC__
    return __int_as_float(bits);
#else
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

extern "C" __global__ void __launch_bounds__(Block::kThreads, BLOCKS)
    attention_plugin(const ELEMENT* q, const ELEMENT* k, const ELEMENT* v, int queries, int keys,
                     int head_size, int query_token, int query_head, int key_token, int key_head,
                     int scale_bits, ELEMENT* out) {
    alignas(16) __shared__ unsigned char shared[Block::kSharedBytes];
    const int row = int(gridDim.y) * head_size;  // of one token in all heads
    const long long of_queries = head_offset(queries * row, query_head);
    const long long of_keys = head_offset(keys * row, key_head);
    const float kLog2E = 1.4426950408889634f;
    Block::run(shared, {q + of_queries, query_token, queries}, {k + of_keys, key_token, keys},
               {v + of_keys, key_token, keys}, out + of_queries, query_token, head_size, 0,
               float_of(scale_bits) * kLog2E);
}
HOST_KERNEL(attention_plugin)
