"""A row of the catalogue: one kernel for given types, and what it may cost on a chip."""

from dataclasses import dataclass
from pathlib import Path

from diffusion_rt.kernels.driver.arguments import Parameter

ARCHS = (80, 86, 87, 89, 90, 100, 110, 120, 121)
SOURCES = Path(__file__).parent / "sources"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One kernel for given types; one image of it is compiled for each chip."""

    name: str
    kernel: str  # the entry's name in the image
    source: str  # a file of SOURCES
    constants: tuple[tuple[str, str], ...]  # preprocessor definitions
    parameters: tuple[Parameter, ...]
    registers: int  # at most so many a thread, on every chip
    shared_bytes: int = 0  # static
    threads: int = 256  # of a block, at most
    # Of the PTX, without which the kernel would be slow; of the machine code where `suffix` is set.
    instructions: tuple[str, ...] = ()
    archs: tuple[int, ...] = ARCHS
    suffix: str = ""  # "a": instructions that only one chip has, and no newer one
    # Cubins for sm_90 and newer wait for the kernel ahead themselves: a launch may overlap it.
    overlaps: bool = False

    def target(self, arch: int) -> str:
        """The assembler's name of a chip for this kernel, such as sm_90a."""
        return f"sm_{arch}{self.suffix}"

    @property
    def ptx_target(self) -> str:
        """What its PTX is written for: the oldest chip, so that every newer one can take it.

        With a suffix its one chip: compute_90a.
        """
        return f"compute_{self.archs[0]}{self.suffix}"
