"""What chips can do at most: the roof under which a plan's time is reckoned."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.native.plan import Arithmetic

# Between two kernels of a captured graph: what the second waits for the first to drain. An
# assumption; bench measures it.
GAP = 1.5e-6  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """Dense operations and bytes a second, and where the numbers are from."""

    name: str
    arch: int
    multiprocessors: int
    half: float  # FLOP/s of float16 and bfloat16 with float32 accumulation
    single: float  # FLOP/s of float32, not on tensor cores
    bandwidth: float  # bytes/s
    source: str

    def rate(self, dtype: Arithmetic) -> float:
        """FLOP/s in an arithmetic."""
        return self.single if dtype == "float32" else self.half


def _datasheet(
    name: str, arch: int, multiprocessors: int, half: float, single: float, bandwidth: float
) -> Roof:
    return Roof(
        name=name,
        arch=arch,
        multiprocessors=multiprocessors,
        half=half * 1e12,
        single=single * 1e12,
        bandwidth=bandwidth * 1e12,
        source=f"NVIDIA's datasheet of the {name}, dense",
    )


ROOFS: Mapping[str, Roof] = {
    "h200": Roof(
        name="H200",
        arch=90,
        multiprocessors=132,
        half=788e12,
        single=67e12,
        bandwidth=4.3e12,
        source="measured: a bfloat16 product of 8192, a copy; float32 as in the datasheet",
    ),
    "h100": _datasheet("H100 SXM", 90, 132, 989, 67, 3.35),
    "a100": _datasheet("A100 80GB SXM", 80, 108, 312, 19.5, 2.039),
    "l40s": _datasheet("L40S", 89, 142, 362, 91.6, 0.864),
    "l4": _datasheet("L4", 89, 58, 121, 30.3, 0.3),
    "rtx-5090": _datasheet("GeForce RTX 5090", 120, 170, 209.5, 104.8, 1.792),
    "rtx-4090": _datasheet("GeForce RTX 4090", 89, 128, 165.2, 82.6, 1.008),
    "rtx-3090": _datasheet("GeForce RTX 3090", 86, 82, 71, 35.6, 0.936),
}


def roof(name: str) -> Roof:
    """The roof of a chip by its name; BadInput where it is none of the table."""
    if name not in ROOFS:
        near = get_close_matches(name, ROOFS, 1)
        hint = f", did you mean {near[0]}?" if near else ";"
        raise BadInput(f"chip {shown(name)} is unknown{hint} wants one of {', '.join(ROOFS)}")
    return ROOFS[name]
