// Matrix products of a warp, and the loads that feed them (sm_80 and newer): ldmatrix, mma.sync with
// float32 sums, cp.async. On a device each is one instruction of the PTX ISA; on the host the 32
// threads of a warp hand their registers to one another, so the layouts below are put to the test.
//
// A fragment is what one thread holds, in pairs of neighbours, the lower in the lower half; with
// g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
//   a[4]  of A [16, 16], row major: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)
//   b[2]  of B [16, 8], column n is a row of W: (2t, g), (2t + 8, g), pairs along k
//   c[4]  of C [16, 8] float32: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
// ldmatrix gives each thread, of each 8 x 8 matrix whose eight rows of 16 bytes the threads name
// (0 to 7 those of the first matrix, 8 to 15 of the second ...), the pair (g, 2t); transposed, the
// elements (2t, g) and (2t + 1, g). So ldmatrix of A's quarters in the order of a[] makes a[], of
// W's [8, 16] makes b[], and transposed of B's own rows [16, 8] makes b[] too.
#pragma once

// An address in shared memory, in bytes; addition works as usual.
#ifdef __CUDACC__
typedef unsigned SharedAddress;
__device__ __forceinline__ SharedAddress shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

template <bool transposed = false>
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], SharedAddress row) {
    if (transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(row)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(row)
                     : "memory");
}

template <bool transposed = false>
__device__ __forceinline__ void load_matrices(unsigned (&to)[2], SharedAddress row) {
    if (transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(to[0]), "=r"(to[1])
                     : "r"(row)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(to[0]), "=r"(to[1])
                     : "r"(row)
                     : "memory");
}

// c += A B
template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                             unsigned b1);
template <>
__device__ __forceinline__ void multiply_add<half>(float (&c)[4], const unsigned (&a)[4],
                                                   unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply_add<bfloat16>(float (&c)[4], const unsigned (&a)[4],
                                                       unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two neighbours of a fragment, each rounded to nearest.
template <class T>
__device__ __forceinline__ unsigned pack(float low, float high);
template <>
__device__ __forceinline__ unsigned pack<half>(float low, float high) {
    unsigned both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
template <>
__device__ __forceinline__ unsigned pack<bfloat16>(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// Begins to copy 16 bytes to shared memory, or writes 16 zero bytes where `inside` is false (then
// nothing is read). They are there for the thread itself after a wait, for others after a barrier
// too.
__device__ __forceinline__ void copy_async(SharedAddress to, const void* from, bool inside) {
    const int bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}
// Closes a group of this thread's copies, which may be empty.
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most `pending` of this thread's latest groups are under way.
template <int pending>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

#else
#include "mma_host.h"
#endif
