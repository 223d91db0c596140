// What every kernel source includes first: CUDA's language, on a device or on the host.
#pragma once
#ifndef __CUDACC__
#include "host_cuda.h"
#else
#define HOST_KERNEL(name)
#endif
#include "bfloat16.h"
#include "half.h"
#include "overlap.h"

// The block's dynamic shared memory, of as many bytes as the launch says.
#ifdef __CUDACC__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#else
#define DYNAMIC_SHARED(name) \
    unsigned char* const name = reinterpret_cast<unsigned char*>(host::dynamic_shared)
#endif
