"""A device with the kernels that were loaded on it."""

from pathlib import Path

import pytest

from diffusion_rt.engines.device import gpu as gpu_module
from diffusion_rt.engines.device.errors import translated
from diffusion_rt.engines.device.gpu import Gpu, open_gpu
from diffusion_rt.engines.errors import BadInput, Fault, OutOfMemory
from diffusion_rt.kernels import driver
from diffusion_rt.kernels.cache import ImageCache
from diffusion_rt.kernels.catalogue import CATALOGUE, Variant
from diffusion_rt.kernels.compile import CompileError, Compiler
from diffusion_rt.kernels.driver.simulator import Simulator
from support.device_graphs import HostImages

SELECT = CATALOGUE["select_rows"]


class Counted(HostImages):
    """Notes what is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int | None]] = []

    def image(self, variant: Variant, arch: int | None) -> bytes:
        self.asked.append((variant.name, arch))
        return super().image(variant, arch)


def test_each_kernel_is_loaded_once() -> None:
    images = Counted()
    gpu = Gpu(Simulator(arch=89), images)
    assert gpu.kernel(SELECT) is gpu.kernel(SELECT)
    assert gpu.kernel(SELECT).name == "select_rows"
    assert images.asked == [("select_rows", 89)]
    gpu.close()


def test_a_kernel_that_cannot_be_compiled_says_the_way_out(tmp_path: Path) -> None:
    def none() -> Compiler:
        raise CompileError("no CUDA compiler: pip install 'diffusion-rt[native]'")

    gpu = Gpu(Simulator(), ImageCache(tmp_path, none))
    for ask in (lambda: gpu.kernel(SELECT), lambda: gpu.prepare([SELECT])):
        with pytest.raises(BadInput, match="kernel select_rows: no CUDA compiler: pip install"):
            ask()
    gpu.close()


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(ordinal: int) -> None:
        raise driver.NoDriver("no NVIDIA driver here; install one")

    monkeypatch.setattr(gpu_module, "open_device", missing)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BadInput, match="the GPU: no NVIDIA driver here; install one"):
        open_gpu()
    assert not list(tmp_path.iterdir()), "nothing is made where there is no GPU"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (driver.OutOfMemory("spent"), OutOfMemory),
        (driver.NoDriver("none"), BadInput),
        (CompileError("broken"), BadInput),
        (driver.DeviceLost("gone"), Fault),
        (driver.Misuse("wrong"), Fault),
        (driver.BadImage("foreign"), Fault),
    ],
)
def test_errors_of_a_device_are_told_in_the_users_two_kinds(
    error: Exception, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught, translated("denoise"):
        raise error
    assert str(caught.value) == f"denoise: {error}"
    assert type(caught.value) is kind
    with pytest.raises(ValueError, match="ours"), translated("denoise"):
        raise ValueError("ours")
