// Programmatic dependent launch (sm_90 and newer): where the launch allows it, a kernel starts while
// the one ahead of it in the stream still runs. Every thread waits before its first access to global
// memory, weights too, so that what comes after a kernel may rely on all that came before it.
// On older chips, in PTX for them, and in an ordinary launch both do nothing.
#pragma once

// Until the kernel ahead has ended and its writes are seen.
__device__ __forceinline__ void wait_for_predecessor() {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The kernel behind may start once all blocks have said so: then there is room on the chip.
__device__ __forceinline__ void release_successor() {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
