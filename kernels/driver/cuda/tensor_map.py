"""Tensor maps by the driver.

The bindings' own `cuTensorMapEncodeTiled` returns a structure that need not lie at a multiple of 64
bytes, which the driver demands, so the function is called at its address.
"""

import ctypes

from diffusion_rt.kernels.driver.arguments import TENSOR_MAP_ALIGNMENT, TENSOR_MAP_BYTES
from diffusion_rt.kernels.driver.cuda.context import LEAST_DRIVER, Context
from diffusion_rt.kernels.driver.tensor_map import TensorMap

# cuda.h: the map, type, rank, address, sizes, strides, box, element strides, interleave, swizzle,
# L2 promotion, what lies outside.
_PROTOTYPE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_uint32,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_uint64),
    ctypes.POINTER(ctypes.c_uint64),
    ctypes.POINTER(ctypes.c_uint32),
    ctypes.POINTER(ctypes.c_uint32),
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
)


def encode(context: Context, described: TensorMap) -> bytes:
    """The driver's 128 bytes; raises DeviceError where it refuses the map."""
    driver = context.enter()
    what = f"encode the tensor map of {described.name}"
    address, _ = context.check(
        driver.cuGetProcAddress(b"cuTensorMapEncodeTiled", LEAST_DRIVER, 0), what
    )
    dtypes = {
        "float16": driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        "bfloat16": driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        "float32": driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    }
    swizzles = {
        0: driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_NONE,
        32: driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_32B,
        64: driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_64B,
        128: driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
    }
    rank = len(described.sizes)
    raw = (ctypes.c_char * (TENSOR_MAP_BYTES + TENSOR_MAP_ALIGNMENT))()
    skip = -ctypes.addressof(raw) % TENSOR_MAP_ALIGNMENT
    code = _PROTOTYPE(int(address))(
        ctypes.addressof(raw) + skip,
        int(dtypes[described.dtype]),
        rank,
        described.address,
        (ctypes.c_uint64 * rank)(*described.sizes),
        (ctypes.c_uint64 * rank)(*described.strides),
        (ctypes.c_uint32 * rank)(*described.box),
        (ctypes.c_uint32 * rank)(*(1,) * rank),
        int(driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE),
        int(swizzles[described.swizzle]),
        int(driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B),
        int(driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
    )
    context.check((driver.CUresult(code),), what)
    return raw.raw[skip : skip + TENSOR_MAP_BYTES]
