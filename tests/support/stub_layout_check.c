/* Compiles only where stub_layout.h is laid out as the real header. */
#include <cuda.h>
#include <stddef.h>

#include "stub_layout.h"

#define SAME(mine, theirs) _Static_assert((mine) == (theirs), #theirs)
SAME(CLUSTER_DIMENSION, CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
SAME(sizeof(Attribute), sizeof(CUlaunchAttribute));
SAME(offsetof(Attribute, value), offsetof(CUlaunchAttribute, value));
SAME(sizeof(LaunchConfig), sizeof(CUlaunchConfig));
SAME(offsetof(LaunchConfig, block), offsetof(CUlaunchConfig, blockDimX));
SAME(offsetof(LaunchConfig, shared), offsetof(CUlaunchConfig, sharedMemBytes));
SAME(offsetof(LaunchConfig, stream), offsetof(CUlaunchConfig, hStream));
SAME(offsetof(LaunchConfig, attributes), offsetof(CUlaunchConfig, attrs));
SAME(offsetof(LaunchConfig, count), offsetof(CUlaunchConfig, numAttrs));
SAME(sizeof(PoolProperties), sizeof(CUmemPoolProps));
SAME(offsetof(PoolProperties, location), offsetof(CUmemPoolProps, location));
SAME(offsetof(PoolProperties, most), offsetof(CUmemPoolProps, maxSize));
SAME(offsetof(PoolProperties, usage), offsetof(CUmemPoolProps, usage));
SAME(sizeof(UpdateResult), sizeof(CUgraphExecUpdateResultInfo));
SAME(offsetof(UpdateResult, node), offsetof(CUgraphExecUpdateResultInfo, errorNode));
