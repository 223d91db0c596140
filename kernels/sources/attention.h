// What the attention kernels share: the numbers of a head.
//
// A head's row is `head_size` neighbouring numbers, a multiple of 8 up to the variant's HEAD;
// strides say, in elements, how far the next batch, token and head lie. Grid: (blocks of queries,
// heads, batch). Scores are scaled by scale * log2(e), so that exp2 serves for exp.
#pragma once
#include "approximate.h"

#ifdef __CUDACC__
__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xFF800000u); }
#else
static inline float minus_infinity() { return -INFINITY; }
#endif

// The first number of this block's batch and head.
__device__ __forceinline__ long long head_offset(int batch_stride, int head_stride) {
    return (long long)blockIdx.z * batch_stride + (long long)blockIdx.y * head_stride;
}

// How many keys a query sees: all, or with `causal` those up to its own place.
__device__ __forceinline__ int visible_keys(int query, int keys, int causal) {
    return causal && query + 1 < keys ? query + 1 : keys;
}
