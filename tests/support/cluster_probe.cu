// A kernel for the test of clusters on the host: two blocks side by side.
#include "kernel.h"

#include "hopper.h"

// Each block of a cluster asks for half of a box of 16 rows, for both: out [blocks, 2048] bytes.
// `which` is a rule to break: 1 the second block leaves early, 2 they do not wait for one another's
// barriers to begin, 3 one arrives at a place that is no shared memory of the other.
extern "C" __global__ void probe_cluster(TENSOR_MAP(map), int which, unsigned char* out) {
    DYNAMIC_SHARED(shared);
    Barrier* barrier = reinterpret_cast<Barrier*>(shared);
    const int rank = blockIdx.x % 2;
    if (threadIdx.x == 0) {
        barrier_begin(barrier, 3);
        publish_barriers();
    }
    if (which != 2) cluster_barrier();
    if (threadIdx.x < 2) barrier_arrive_at(barrier + (which == 3 ? 1000 : 0), threadIdx.x);
    if (threadIdx.x == 0) {
        barrier_expect(barrier, 2048);
        share_tile(shared + 1024 * (1 + rank), map, barrier, 3, 0, 8 * rank);
    }
    barrier_wait(barrier, 0);
    for (int i = threadIdx.x; i < 2048; i += blockDim.x)
        out[blockIdx.x * 2048 + i] = shared[1024 + i];
    if (which != 1 || rank == 0) cluster_barrier();
}
HOST_KERNEL(probe_cluster)
