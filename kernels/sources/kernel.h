// What every kernel source includes first: CUDA's language, on a device or on the host.
#pragma once
#ifndef __CUDACC__
#include "host_cuda.h"
#else
#define HOST_KERNEL(name)
#endif
#include "half.h"
