"""Products and convolutions whose arrays end where memory ends: who reads on is stopped.

A program of its own, as it dies where a kernel reads or writes past the end of an array.
"""

import ctypes
import functools
import mmap
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_rt.kernels import tiles
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.compile import host_library
from diffusion_rt.kernels.conv import Convolution, TiledConvolution
from diffusion_rt.kernels.driver.arguments import Packed
from diffusion_rt.kernels.epilogue import Epilogue
from diffusion_rt.kernels.gemm import Product, TiledProduct
from diffusion_rt.kernels.tactic import Operands

LIBC = ctypes.CDLL(None, use_errno=True)
KEPT: list[mmap.mmap] = []  # Memory that is in use until the end.


def guarded(*shape: int, dtype: str = "f4") -> int:
    """The address of ones, behind whose last there is no memory."""
    ones = np.ones(shape, dtype)
    whole = -(-ones.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, whole + mmap.PAGESIZE)
    KEPT.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    nothing = 0
    if LIBC.mprotect(ctypes.c_void_p(start + whole), mmap.PAGESIZE, nothing):
        raise OSError(ctypes.get_errno(), "mprotect")
    at = start + whole - ones.nbytes
    ctypes.memmove(at, ones.ctypes.data, ones.nbytes)
    return at


def zeroed(count: int) -> int:
    """The address of counters that are 0."""
    at = guarded(count)
    ctypes.memset(at, 0, 4 * count)
    return at


@functools.cache
def loaded(name: str) -> Any:
    """The kernel of a variant, compiled for the host."""
    variant = CATALOGUE[name]
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "kernel.so")
        image.write_bytes(host_library([variant]))
        start: Any = getattr(ctypes.CDLL(str(image)), f"host_launch_{variant.kernel}")
    start.restype = ctypes.c_char_p
    return start


def run(tactic: TiledProduct | TiledConvolution, operands: Operands) -> None:
    """The kernel, as the simulated driver would call it."""
    variant, launch = CATALOGUE[tactic.variant], tactic.launch
    start = loaded(tactic.variant)
    packed = Packed(variant.name, variant.parameters, tactic.arguments(operands))
    three = ctypes.c_uint * 3
    trouble = start(
        three(*launch.grid),
        three(*launch.block),
        three(1, 1, 1),
        ctypes.c_uint(launch.shared_bytes),
        ctypes.c_void_p(packed.address),
    )
    assert trouble is None, trouble


def main() -> None:
    """No size is a multiple of a tile's, and both sources, bias, vector and residual are there."""
    has = Epilogue(bias=True, vector=True, residual=True)
    for dtype in ("float16", "float32"):
        tile = tiles.OF_PRODUCTS[dtype][0]
        kind = {"float16": "f2", "float32": "f4"}[dtype]
        for splits in (1, 2):
            product = Product(
                dtype=dtype, rows=9, columns=24, depth=72, first_depth=40, epilogue=has
            )
            run(
                TiledProduct(product, tiles.cut(tile, splits, dtype, 9, 24, 72)),
                Operands(
                    first=guarded(9, 40, dtype=kind),
                    second=guarded(9, 32, dtype=kind),
                    weight=guarded(24, 72, dtype=kind),
                    bias=guarded(24, dtype=kind),
                    vector=guarded(1, 24, dtype=kind),
                    residual=guarded(9, 24, dtype=kind),
                    output=guarded(9, 24, dtype=kind),
                    partial=guarded(splits, 9, 24),
                    arrived=zeroed(1),
                ),
            )
            of = Convolution(
                dtype=dtype,
                images=2,
                height=3,
                width=5,
                channels=40,
                first_channels=24,
                filters=24,
                kernel=(3, 3),
                padding=(1, 1, 1, 1),
                epilogue=has,
            )
            run(
                TiledConvolution(of, tiles.cut(tile, splits, dtype, of.rows, of.filters, of.depth)),
                Operands(
                    first=guarded(2, 15, 24, dtype=kind),
                    second=guarded(2, 15, 16, dtype=kind),
                    weight=guarded(24, 9, 40, dtype=kind),
                    bias=guarded(24, dtype=kind),
                    vector=guarded(2, 24, dtype=kind),
                    residual=guarded(2, 15, 24, dtype=kind),
                    output=guarded(2, 15, 24, dtype=kind),
                    partial=guarded(splits, 30, 24),
                    arrived=zeroed(1),
                ),
            )


if __name__ == "__main__":
    main()
