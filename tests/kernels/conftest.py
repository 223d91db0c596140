"""Kernels compiled for the host, once for all tests."""

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from diffusion_rt.kernels.catalogue import CATALOGUE
from support.kernel_bench import KernelBench


@pytest.fixture(scope="session", params=["float16", "float32"])
def compiled(request: pytest.FixtureRequest) -> tuple[KernelBench, str]:
    """The kernels of one dtype, compiled for the host."""
    names = ("prepare", "guidance_statistics", "guided_step")
    variants = [CATALOGUE[f"{name}.{request.param}"] for name in names]
    return KernelBench(variants), request.param


@pytest.fixture
def bench(compiled: tuple[KernelBench, str]) -> Iterator[tuple[KernelBench, str]]:
    """The kernels of one dtype on a simulated device, and the dtype."""
    yield compiled
    compiled[0].clear()


@pytest.fixture(scope="session")
def disassembler() -> str:
    """nvdisasm, of its wheel or of the toolkit."""
    found = None
    if (nvidia := find_spec("nvidia")) is not None:
        for folder in nvidia.submodule_search_locations or ():
            for path in sorted(Path(folder).glob("*/bin/nvdisasm")):
                found = str(path)
    found = found or shutil.which("nvdisasm")
    if found is None:
        pytest.skip("skipped: no nvdisasm; pip install nvidia-cuda-nvdisasm")
    return found
