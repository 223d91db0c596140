"""What an operation of a plan launches, and in which ways."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from diffusion_rt.engines.errors import NoKernel
from diffusion_rt.engines.native import plain_ways, tactic_ways
from diffusion_rt.engines.native import plan as p
from diffusion_rt.engines.native.ways import Chip, Ways
from diffusion_rt.kernels.driver import Misuse

RULES: Mapping[type[p.Operation], Callable[[Any, p.Plan, Chip], Ways]] = {
    p.Product: tactic_ways.product,
    p.Convolution: tactic_ways.convolution,
    p.Attention: tactic_ways.attend,
    p.GroupNorm: plain_ways.group_norms,
    p.LayerNorm: plain_ways.layer_norms,
    p.Copy: plain_ways.copies,
    p.Elementwise: plain_ways.functions,
    p.Embedding: plain_ways.embeddings,
    p.TimestepEmbedding: plain_ways.timestep_embeddings,
    p.SelectRow: plain_ways.selected_rows,
}


def ways(operation: p.Operation, plan: p.Plan, chip: Chip) -> Ways:
    """How an operation of the plan can be run, the likely fastest way first.

    Raises NoKernel, which names it, where no kernel takes it.
    """
    try:
        found = RULES[type(operation)](operation, plan, chip)
        return _without_suffixes(found) if chip.plain else found
    except Misuse as error:
        raise NoKernel(
            f"{plan.graph}: {operation.name}: no kernel runs this on sm_{chip.limits.arch} "
            f"({error}); run with --engine ort"
        ) from None


def _without_suffixes(found: Ways) -> Ways:
    """The ways whose kernels have no instructions of one chip alone."""
    kept = tuple(way for way in found.ways if not any(v.suffix for v in way.variants))
    if not kept:
        raise Misuse("only kernels of this very chip, which the driver refuses")
    return replace(found, ways=kept)
