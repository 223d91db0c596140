"""How many kernels a plan launches on a chip, and what the chip has none for."""

from dataclasses import dataclass, replace

from diffusion_rt.engines.errors import NoKernel
from diffusion_rt.engines.native.chips import Roof
from diffusion_rt.engines.native.launches import ways
from diffusion_rt.engines.native.plan import Plan, launches
from diffusion_rt.engines.native.ways import Chip
from diffusion_rt.kernels.driver import limits_of


@dataclass(frozen=True, slots=True)
class Counts:
    """Kernels of each operation; and for each that no kernel takes what would be said of it."""

    kernels: tuple[int, ...]
    refused: tuple[str, ...]


def kernel_counts(plan: Plan, roof: Roof) -> Counts:
    """Of the tactic that is taken where none was measured.

    An operation that no kernel takes counts as `plan.launches` says.
    """
    limits = replace(limits_of(roof.arch), multiprocessors=roof.multiprocessors)
    chip = Chip(limits)
    kernels, refused = [], []
    for operation in plan.operations:
        try:
            kernels.append(len(ways(operation, plan, chip).ways[0].variants))
        except NoKernel as error:
            kernels.append(launches(operation))
            refused.append(str(error))
    return Counts(tuple(kernels), tuple(refused))
