"""How many kernels a plan launches on a chip, who chose them, and what the chip has none for."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from diffusion_rt.engines.errors import NoKernel
from diffusion_rt.engines.native.chips import Roof
from diffusion_rt.engines.native.launches import ways
from diffusion_rt.engines.native.plan import Plan, launches
from diffusion_rt.engines.native.reckon import limits_under
from diffusion_rt.engines.native.tactics import Chosen, Origin
from diffusion_rt.engines.native.ways import Chip


@dataclass(frozen=True, slots=True)
class Counts:
    """Kernels of each operation; operations by who chose their way; what no kernel takes, in words.

    An operation that no kernel takes is none of `chosen`.
    """

    kernels: tuple[int, ...]
    chosen: Mapping[Origin, int]
    refused: tuple[str, ...]


def kernel_counts(plan: Plan, roof: Roof, choose: Chosen) -> Counts:
    """Of the tactics that are chosen.

    An operation that no kernel takes counts as `plan.launches` says.
    """
    chip = Chip(limits_under(roof))
    kernels, refused = [], []
    chosen: Counter[Origin] = Counter()
    for operation in plan.operations:
        try:
            way, origin = choose(ways(operation, plan, chip))
            kernels.append(len(way.variants))
            chosen[origin] += 1
        except NoKernel as error:
            kernels.append(launches(operation))
            refused.append(str(error))
    return Counts(tuple(kernels), dict(chosen.most_common()), tuple(refused))
