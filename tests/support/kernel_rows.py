"""Compiled kernels held against their rows of the catalogue."""

from diffusion_rt.kernels.catalogue import Variant
from diffusion_rt.kernels.cubin import Facts
from diffusion_rt.kernels.driver import Parameter

EVERY_CHIP = "DIFFUSION_RT_TEST_EVERY_CHIP"
"""Set where kernels are to be compiled for every chip, which takes minutes."""

SYSTEM_SHARED_BYTES = 1024  # of each block from sm_90 on, counted into the section's size


def wrong(variant: Variant, arch: int, found: Facts) -> list[str]:
    """Where a compiled kernel does not keep to its catalogue row."""
    trouble = []
    if found.frame_bytes:
        trouble.append(f"{found.frame_bytes} bytes of stack: a spill or a local array")
    if found.registers > variant.registers:
        trouble.append(f"{found.registers} registers, {variant.registers} allowed")
    system = SYSTEM_SHARED_BYTES if arch >= 90 and found.shared_bytes else 0
    if found.shared_bytes - system != variant.shared_bytes:
        trouble.append(f"{found.shared_bytes - system} bytes of shared memory")
    if found.parameters != layout(variant.parameters):
        trouble.append(f"parameters {found.parameters}")
    return trouble


def layout(parameters: tuple[Parameter, ...]) -> tuple[tuple[int, int], ...]:
    """Offset and size of each in the parameter block, by C's rules of alignment.

    Tensor maps lie at multiples of 64 of memory; on sm_90 the block begins 16 bytes beside one.
    """
    at, places = 0, []
    for parameter in parameters:
        size = parameter.nbytes
        at += -(at + 16) % 64 if parameter.kind == "tensor_map" else -at % size
        places.append((at, size))
        at += size
    return tuple(places)
