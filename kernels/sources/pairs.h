// Four neighbours of a row from what a warp's matrix instructions leave: two neighbouring sums of each
// group of eight columns in a thread.
//
// A thread swaps its pairs of every second group with the thread beside it, and so has four
// neighbours of half as many groups: a warp then reads and writes whole sectors of 32 bytes.
#pragma once
#include "mma.h"

struct alignas(8) Four {
    unsigned pairs[2];  // of neighbours, the lower in the lower half
};
struct alignas(4) Two {
    unsigned pair;
};

__device__ __forceinline__ float low(unsigned pair) {
    return to_float(ELEMENT{static_cast<unsigned short>(pair)});
}
__device__ __forceinline__ float high(unsigned pair) {
    return to_float(ELEMENT{static_cast<unsigned short>(pair >> 16)});
}
__device__ __forceinline__ void add(float (&x)[4], Four y) {
    x[0] += low(y.pairs[0]);
    x[1] += high(y.pairs[0]);
    x[2] += low(y.pairs[1]);
    x[3] += high(y.pairs[1]);
}
__device__ __forceinline__ Four load_four(const ELEMENT* from) {
    return *reinterpret_cast<const Four*>(from);
}
__device__ __forceinline__ Two load_two(const ELEMENT* from) {
    return *reinterpret_cast<const Two*>(from);
}
__device__ __forceinline__ void store_four(ELEMENT* to, const float (&x)[4]) {
    *reinterpret_cast<Four*>(to) = Four{{pack<ELEMENT>(x[0], x[1]), pack<ELEMENT>(x[2], x[3])}};
}

// Of two neighbouring groups this thread's pairs, to four neighbours of the first group in even
// threads, of the second in odd ones.
__device__ __forceinline__ void swap_pairs(const float (&first)[2], const float (&second)[2],
                                           float (&four)[4]) {
    const bool odd = threadIdx.x % 2;
    float own[2], other[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        own[i] = odd ? second[i] : first[i];
        other[i] = __shfl_xor_sync(0xFFFFFFFFu, odd ? first[i] : second[i], 1);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        four[i] = odd ? other[i] : own[i];
        four[i + 2] = odd ? own[i] : other[i];
    }
}
