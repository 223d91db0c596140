"""What chips can do: the roof under which a plan's time is reckoned.

A datasheet gives what the units do at their highest clock; a large product does not get that. One
H200 was measured: 788 of its 989 TFLOP/s (a bfloat16 product of 8192) and 4.3 of its 4.8 TB/s (a
copy). Every chip is taken to give the same shares of its own, so that chips can be compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.native.plan import Arithmetic

# Between two kernels of a captured graph: what the second waits for the first to drain. An
# assumption; bench measures it.
GAP = 1.5e-6  # seconds
# Results a clock of a multiprocessor: CUDA C++ Programming Guide, throughput of arithmetic
# instructions. It gives the H100's 3.9 T a second of FlashAttention 3 (Shah et al., 2024).
EXPONENTIALS = 16
HALF_SHARE = 788 / 989
BANDWIDTH_SHARE = 4.3 / 4.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """Dense operations and bytes a second, and where the numbers are from."""

    name: str
    arch: int
    multiprocessors: int
    clock: float  # Hz, the highest
    half: float  # FLOP/s of float16 and bfloat16 with float32 accumulation
    single: float  # FLOP/s of float32, not on tensor cores
    bandwidth: float  # bytes/s
    exponentials: float  # 1/s
    source: str

    def rate(self, dtype: Arithmetic) -> float:
        """FLOP/s in an arithmetic."""
        return self.single if dtype == "float32" else self.half


def _chip(
    name: str,
    arch: int,
    multiprocessors: int,
    clock: float,
    half: float,
    single: float,
    bandwidth: float,
    basis: str = "NVIDIA's datasheet",
) -> Roof:
    """From a datasheet's GHz, TFLOP/s and TB/s."""
    shares = f"of half precision {HALF_SHARE:.0%} and of bandwidth {BANDWIDTH_SHARE:.0%}"
    return Roof(
        name=name,
        arch=arch,
        multiprocessors=multiprocessors,
        clock=clock * 1e9,
        half=half * HALF_SHARE * 1e12,
        single=single * 1e12,
        bandwidth=bandwidth * BANDWIDTH_SHARE * 1e12,
        exponentials=EXPONENTIALS * multiprocessors * clock * 1e9,
        source=f"{basis}, {shares} as measured on an H200",
    )


ROOFS: Mapping[str, Roof] = {
    "h200": _chip("H200", 90, 132, 1.83, 989, 67, 4.8),
    "h100": _chip("H100 SXM", 90, 132, 1.83, 989, 67, 3.35),
    "a100": _chip("A100 80GB SXM", 80, 108, 1.41, 312, 19.5, 2.039),
    "l40s": _chip("L40S", 89, 142, 2.52, 362, 91.6, 0.864),
    "l4": _chip("L4", 89, 58, 2.04, 121, 30.3, 0.3),
    "rtx-5090": _chip("GeForce RTX 5090", 120, 170, 2.407, 209.5, 104.8, 1.792),
    "rtx-4090": _chip("GeForce RTX 4090", 89, 128, 2.52, 165.2, 82.6, 1.008),
    "rtx-3090": _chip("GeForce RTX 3090", 86, 82, 1.695, 71, 35.6, 0.936),
    # Of these NVIDIA gives no dense half precision. It is reckoned from what there is: 170 TOPS of
    # the GPU (Jetson AGX Orin Series Technical Brief), 517 TFLOP/s (Jetson Thor's data sheet), 1
    # PFLOP/s (DGX Spark's specifications; its float32 as told at Hot Chips 2025).
    "orin": _chip(
        *("Jetson AGX Orin 64GB", 87, 16, 1.3, 170 / 4, 5.3, 0.2048),
        "NVIDIA's technical brief, half precision a quarter of sparse int8",
    ),
    "thor": _chip(
        *("Jetson Thor T5000", 110, 20, 1.575, 517 / 2, 8.06, 0.273),
        "NVIDIA's datasheet, half precision half of FP8",
    ),
    "spark": _chip(
        *("DGX Spark", 121, 48, 2.52, 1000 / 8, 31, 0.273),
        "NVIDIA's specifications, half precision an eighth of sparse FP4",
    ),
}


def roof(name: str) -> Roof:
    """The roof of a chip by its name; BadInput where it is none of the table."""
    if name not in ROOFS:
        near = get_close_matches(name, ROOFS, 1)
        hint = f", did you mean {near[0]}?" if near else ";"
        raise BadInput(f"chip {shown(name)} is unknown{hint} wants one of {', '.join(ROOFS)}")
    return ROOFS[name]
