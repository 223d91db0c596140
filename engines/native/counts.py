"""How many kernels a plan launches on a chip."""

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native.chips import Roof
from diffusion_rt.engines.native.launches import ways
from diffusion_rt.engines.native.plan import Plan, launches
from diffusion_rt.engines.native.ways import Chip
from diffusion_rt.kernels.driver import Limits

# Shared memory of one block, with the opt-in (CUDA C++ Programming Guide, compute capabilities).
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}


def kernel_counts(plan: Plan, roof: Roof) -> list[int]:
    """For each operation the kernels of the tactic that is taken where none was measured.

    An operation that no kernel takes on the chip counts as `plan.launches` says.
    """
    limits = Limits(
        arch=roof.arch, shared_bytes=SHARED[roof.arch], multiprocessors=roof.multiprocessors
    )
    chip = Chip(limits)
    found = []
    for operation in plan.operations:
        try:
            found.append(len(ways(operation, plan, chip).ways[0].variants))
        except BadInput:
            found.append(launches(operation))
    return found
