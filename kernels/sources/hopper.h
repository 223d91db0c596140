// What sm_90a adds, one function for each instruction of the PTX ISA: barriers in shared memory that
// count arrivals and bytes (mbarrier), copies of tiles by the tensor memory accelerator (TMA,
// cp.async.bulk.tensor), and products of a warpgroup, four warps together (wgmma.mma_async). On the
// host hopper_host.h does the same by fibres, as late or as early as a chip may.
//
// A barrier's phase ends once all its arrivals have come and as many bytes as were announced; the
// first phase has parity 0, and a wait for parity 1 on a fresh barrier goes on at once.
//
// wgmma: D [64, N] float32 (+)= A [64, 16] B [16, N]. Thread t of the warpgroup, g = t % 32 / 4 and
// q = t % 4, holds of D, for each group j of eight columns ("Register Fragments for wgmma.m64nNk16"):
//   d[4j], d[4j + 1]      row 16 (t / 32) + g,      columns 8j + 2q and 8j + 2q + 1
//   d[4j + 2], d[4j + 3]  row 16 (t / 32) + g + 8,  the same columns
// A in registers is held as by mma.m16n8k16 (mma.h): pairs (g, 2q), (g + 8, 2q), (g, 2q + 8),
// (g + 8, 2q + 8) of the warp's sixteen rows.
#pragma once

typedef unsigned long long Barrier;     // eight bytes of shared memory
typedef unsigned long long Descriptor;  // of a matrix in shared memory, for wgmma

#ifdef __CUDACC__
struct alignas(64) TensorMap {
    unsigned char bytes[128];
};
// A parameter that stays in the parameter block, where TMA finds it.
#define TENSOR_MAP(name) const __grid_constant__ TensorMap name

__device__ __forceinline__ unsigned window_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void barrier_begin(Barrier* barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(window_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}
// Makes begun barriers known to TMA; a barrier of the block comes next.
__device__ __forceinline__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(window_address(barrier))
                 : "memory");
}
// Arrives at the barrier at the same place in a block of the cluster. It publishes nothing to that
// block (.release.cluster would, by a fence of the whole chip): it says that products have read.
__device__ __forceinline__ void barrier_arrive_at(Barrier* barrier, unsigned rank) {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
        "}" ::"r"(window_address(barrier)),
        "r"(rank)
        : "memory");
}
// Arrives, and announces bytes that the phase waits for.
__device__ __forceinline__ void barrier_expect(Barrier* barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     window_address(barrier)),
                 "r"(bytes)
                 : "memory");
}
// Until the phase of that parity has ended.
__device__ __forceinline__ void barrier_wait(Barrier* barrier, unsigned parity) {
    unsigned done;
    do {
        asm volatile(
            "{\n"
            ".reg .pred ended;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
            "selp.u32 %0, 1, 0, ended;\n"
            "}"
            : "=r"(done)
            : "r"(window_address(barrier)), "r"(parity)
            : "memory");
    } while (!done);
}

// Of all threads of the cluster's blocks. It publishes barriers that publish_barriers() was said of,
// and nothing else.
__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
// The same as the last thing that a block does: what it did in the other blocks is done.
__device__ __forceinline__ void leave_cluster() {
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// A named barrier (1 to 15) of some of the block's warps.
__device__ __forceinline__ void group_barrier(int name, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// Counts in for the same barrier without waiting.
__device__ __forceinline__ void group_arrive(int name, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// Begins to copy a box of the tensor, its first element at (x, y), to shared memory.
__device__ __forceinline__ void load_tile(void* to, const TensorMap& map, Barrier* barrier, int x,
                                          int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%3, %4}], [%2];" ::"r"(window_address(to)),
        "l"(&map), "r"(window_address(barrier)), "r"(x), "r"(y)
        : "memory");
}
__device__ __forceinline__ void load_tile(void* to, const TensorMap& map, Barrier* barrier, int x,
                                          int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%3, %4, %5}], [%2];" ::"r"(window_address(to)),
        "l"(&map), "r"(window_address(barrier)), "r"(x), "r"(y), "r"(z)
        : "memory");
}
__device__ __forceinline__ void load_tile(void* to, const TensorMap& map, Barrier* barrier, int x,
                                          int y, int z, int w) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%3, %4, %5, %6}], [%2];" ::"r"(window_address(to)),
        "l"(&map), "r"(window_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
        : "memory");
}
// The same, to the same place of each block of the cluster that has a bit in `blocks`; each one's own
// barrier, at the same place too, counts the bytes.
__device__ __forceinline__ void share_tile(void* to, const TensorMap& map, Barrier* barrier,
                                           unsigned short blocks, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(window_address(to)),
        "l"(&map), "r"(window_address(barrier)), "h"(blocks), "r"(x), "r"(y)
        : "memory");
}

// Before the first wgmma, and again when registers of it were written or read since.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most `pending` of the latest groups are under way.
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// Keeps the compiler from moving uses of these registers over a fence or a wait.
template <int count>
__device__ __forceinline__ void settle(float (&registers)[count]) {
#pragma unroll
    for (int i = 0; i < count; i++) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int count>
__device__ __forceinline__ void settle(unsigned (&fragments)[count][4]) {
#pragma unroll
    for (int i = 0; i < count; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) asm volatile("" : "+r"(fragments[i][j])::"memory");
}

// Registers of each thread of this warpgroup from here on.
template <int count>
__device__ __forceinline__ void shrink_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ __forceinline__ void grow_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

// Dynamic shared memory begins at a multiple of 1,024, as declared, or nothing below would be right.
__device__ __forceinline__ void require_aligned(const void* memory) {
    if (window_address(memory) % 1024) asm volatile("trap;");
}

#include "wgmma.h"
#else
#include "hopper_host.h"
#endif

// Rows of 128 bytes, eight of them 1,024 bytes, chunks of 16 bytes exchanged as TMA's 128-byte
// swizzle does; the tile starts at a multiple of 1,024. A step of 16 along K is 32 bytes: + 2.
// Bits: start address / 16 (0 to 13), leading offset / 16 (16 to 29, not used by this layout),
// stride offset / 16 (32 to 45), base offset 0 (49 to 51), swizzle 1 for 128 bytes (62 to 63).
__device__ __forceinline__ Descriptor rows_of_128(unsigned address) {
    return Descriptor((address & 0x3FFFFu) >> 4) | Descriptor(1) << 16 | Descriptor(1024 >> 4) << 32 |
           Descriptor(1) << 62;
}
// The same tile with K from row to row and columns of B along a row (wgmma_across). B of more than 64
// columns goes on in another tile, `leading` bytes further. A step of 16 along K is 16 rows: + 128.
__device__ __forceinline__ Descriptor columns_of_128(unsigned address, unsigned leading) {
    return Descriptor((address & 0x3FFFFu) >> 4) | Descriptor(leading >> 4) << 16 |
           Descriptor(1024 >> 4) << 32 | Descriptor(1) << 62;
}
