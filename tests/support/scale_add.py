"""The kernel of the device layer's own tests, as a catalogue row and as plain Python."""

import ctypes
import functools
import os
from pathlib import Path

import numpy as np

from diffusion_rt.kernels.catalogue import Variant
from diffusion_rt.kernels.compile import host_library
from diffusion_rt.kernels.driver import Launch, Parameter
from diffusion_rt.kernels.driver.arguments import Packed
from diffusion_rt.kernels.driver.simulator.module import Lookup

VARIANT = Variant(
    name="scale_add",
    kernel="scale_add",
    source=str(Path(__file__).with_suffix(".cu").resolve()),
    constants=(),
    parameters=(
        Parameter("values", "pointer", alignment=4),
        Parameter("addend", "pointer", alignment=4, nullable=True),
        Parameter("count", "int32"),
        Parameter("scale", "float32"),
    ),
    registers=32,
)


def launch(count: int) -> Launch:
    """Blocks of 64 threads."""
    return Launch(grid=(-(-count // 64), 1, 1), block=(64, 1, 1))


IMAGE = "DIFFUSION_RT_SCALE_ADD"
"""Names a compiled host library, so that a test's subprocesses need not compile it again."""


@functools.cache
def host_image() -> bytes:
    """The kernel as a host library; raises CompileError."""
    made = os.environ.get(IMAGE)
    return Path(made).read_bytes() if made else host_library([VARIANT])


def run(_launch: Launch, packed: Packed) -> None:
    """The same on simulated memory, for a machine without a C++ compiler."""
    values, addend, count, scale = packed.values
    assert isinstance(values, int)
    assert isinstance(addend, int)
    assert isinstance(count, int)
    array = np.ctypeslib.as_array((ctypes.c_float * count).from_address(values))
    array *= np.float32(scale)
    if addend:
        array += np.ctypeslib.as_array((ctypes.c_float * count).from_address(addend))


def open_image(_image: bytes) -> Lookup:
    """What the simulator finds in any image."""
    return {"scale_add": run}.get
