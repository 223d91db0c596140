"""A table of tactics for a chip that is not here: the likely fastest ways, and their times."""

from collections.abc import Iterator
from dataclasses import replace

from diffusion_rt.engines.native.chips import Roof
from diffusion_rt.engines.native.executor import Program
from diffusion_rt.engines.native.lower import plan_of
from diffusion_rt.engines.native.needed import Target, runs
from diffusion_rt.engines.native.precision import arithmetic
from diffusion_rt.engines.native.roofline import cost
from diffusion_rt.engines.native.shipped import Table, by_way
from diffusion_rt.engines.native.ways import Chip
from diffusion_rt.kernels.driver import Limits, limits_of


def limits_under(roof: Roof) -> Limits:
    """What one chip takes of a launch, with its own number of multiprocessors."""
    return replace(limits_of(roof.arch), multiprocessors=roof.multiprocessors)


def reckoned(target: Target, roof: Roof) -> Table:
    """The first way of every size that has several; no weight is read, no device asked."""
    return Table(
        source="reckoned",
        chip=roof.name,
        multiprocessors=roof.multiprocessors,
        ways=by_way(dict.fromkeys(_first_ways(target, roof))),
    )


def _first_ways(target: Target, roof: Roof) -> Iterator[tuple[str, str, float]]:
    """Sizes, way and µs; the time is the model's cycles, but no less than the roof allows."""
    chip = Chip(limits_under(roof))
    for graph, sizes in runs(target):
        dtype = arithmetic(target.model, graph, None, target.precision)
        plan = plan_of(target.model, graph, sizes, dtype)
        for operation, found in zip(plan.operations, Program(plan, chip).options, strict=True):
            if len(found.ways) > 1:
                way = found.ways[0]
                least = cost(plan, operation, roof, kernels=0).seconds
                cycles = way.tactic.cycles(chip.limits) if way.tactic else 0.0
                yield found.sizes, way.name, 1e6 * max(least, cycles / roof.clock)
