// Kernels for the test of hopper.h on the host: single instructions, and rules that are broken.
#include "kernel.h"

#include "hopper.h"

// One box of a tensor, as it lies in shared memory: out [bytes].
extern "C" __global__ void probe_tile(TENSOR_MAP(map), int rank, int x, int y, int z, int w, int to,
                                      int bytes, unsigned char* out) {
    DYNAMIC_SHARED(shared);
    Barrier* barrier = reinterpret_cast<Barrier*>(shared);
    if (threadIdx.x == 0) {
        barrier_begin(barrier, 1);
        publish_barriers();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        barrier_expect(barrier, bytes);
        if (rank == 2) load_tile(shared + to, map, barrier, x, y);
        if (rank == 3) load_tile(shared + to, map, barrier, x, y, z);
        if (rank == 4) load_tile(shared + to, map, barrier, x, y, z, w);
    }
    barrier_wait(barrier, 0);
    for (int i = threadIdx.x; i < bytes; i += blockDim.x) out[i] = shared[to + i];
}
HOST_KERNEL(probe_tile)

// Shared memory filled from `image`, then D = `before`, D += A B for `steps` pairs of descriptors;
// the start addresses in them count from the image's. d [128, 32].
extern "C" __global__ void probe_product(const unsigned char* image, int bytes,
                                         const Descriptor* descriptors, int steps, float before,
                                         float* out) {
    DYNAMIC_SHARED(shared);
    for (int i = threadIdx.x; i < bytes; i += blockDim.x) shared[i] = image[i];
    __syncthreads();
    float d[32];
    for (int i = 0; i < 32; i++) d[i] = before;
    const Descriptor start = window_address(shared) >> 4;
    settle(d);
    wgmma_fence();
    for (int i = 0; i < steps; i++)
        wgmma<half, 64>(d, descriptors[2 * i] + start, descriptors[2 * i + 1] + start,
                        i > 0 || before != 0);
    wgmma_commit();
    wgmma_wait<0>();
    settle(d);
    for (int i = 0; i < 32; i++) out[threadIdx.x * 32 + i] = d[i];
}
HOST_KERNEL(probe_product)

// A ring of `stages` slots between one thread and the others: out[i] = i for all i < count, if
// nobody reads too early and nothing is written over too early.
extern "C" __global__ void probe_ring(int stages, int count, int* out) {
    DYNAMIC_SHARED(shared);
    Barrier* full = reinterpret_cast<Barrier*>(shared);
    Barrier* empty = full + stages;
    int* slots = reinterpret_cast<int*>(empty + stages);
    if (threadIdx.x == 0) {
        for (int i = 0; i < stages; i++) {
            barrier_begin(full + i, 1);
            barrier_begin(empty + i, blockDim.x / 32 - 1);
        }
        publish_barriers();
    }
    __syncthreads();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = 0; i < count; i++) {
        const int stage = i % stages, parity = i / stages % 2;
        if (warp == 0) {
            if (lane == 0) {
                barrier_wait(empty + stage, parity ^ 1);
                slots[stage] = i;
                barrier_arrive(full + stage);
            }
        } else {
            barrier_wait(full + stage, parity);
            if (lane == i % 32) out[i] = slots[stage];
            __syncwarp();
            if (lane == 0) barrier_arrive(empty + stage);
        }
    }
}
HOST_KERNEL(probe_ring)

// Rules broken, one by one.
extern "C" __global__ void probe_misuse(int which, TENSOR_MAP(map), float* out) {
    DYNAMIC_SHARED(shared);
    Barrier* barrier = reinterpret_cast<Barrier*>(shared);
    const Descriptor rows = rows_of_128(window_address(shared + 1024));
    float d[32] = {};
    if (threadIdx.x == 0 && which != 1) barrier_begin(barrier, which == 2 ? 1 : 2);
    __syncthreads();
    if (which == 0 || which == 1) barrier_wait(barrier, 0);  // nobody arrives, or it never began
    if (which == 2 && threadIdx.x < 2) {
        barrier_arrive(barrier);
        // The phase has ended; a second one would start, were it not for the bytes of the first.
        barrier_expect(barrier, 16);
        barrier_arrive(barrier);
    }
    if (which == 3 && threadIdx.x == 0) load_tile(shared + 1024, map, barrier, 0, 0);
    if (which == 4) wgmma<half, 64>(d, rows, rows, 0);  // without a fence
    if (which == 5 && threadIdx.x < 32) {                // three warps stay away
        wgmma_fence();
        wgmma<half, 64>(d, rows, rows, 0);
        wgmma_commit();
        wgmma_wait<0>();
    }
    if (which == 6) {  // never waited for
        wgmma_fence();
        wgmma<half, 64>(d, rows, rows, 0);
        wgmma_commit();
    }
    if (which == 7) {  // the start address with a bit that has no meaning
        wgmma_fence();
        wgmma<half, 64>(d, rows | 1 << 15, rows, 0);
    }
    if (which == 8) {  // outside shared memory
        wgmma_fence();
        wgmma<half, 64>(d, rows_of_128(window_address(shared) + 64 * 1024), rows, 0);
        wgmma_commit();
        wgmma_wait<0>();
    }
    if (which == 9 && threadIdx.x < 32) group_barrier(1, 64);
    if (which == 10) {  // read before the wait
        wgmma_fence();
        wgmma<half, 64>(d, rows, rows, 0);
        wgmma_commit();
        out[threadIdx.x] = d[0];
        wgmma_wait<0>();
    }
    if (which == 11 && threadIdx.x == 0) {  // the copy is still under way
        publish_barriers();
        load_tile(shared + 1024, map, barrier, 0, 0);
    }
}
HOST_KERNEL(probe_misuse)
