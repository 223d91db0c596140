"""The devices that every test of the contract runs on."""

import os
from collections.abc import Iterator

import pytest

from diffusion_rt.kernels.compile import CompileError, find_compiler
from diffusion_rt.kernels.driver import Device, NoDriver, open_device
from diffusion_rt.kernels.driver.probe import probe
from diffusion_rt.kernels.driver.simulator import Simulator
from support import scale_add
from support.stub_driver import STUB


@pytest.fixture(params=["simulator", "simulator, others ahead", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """One device of each kind; the real one over the stub driver, or where there is a GPU."""
    if request.param == "cuda":
        opened = _cuda()
    else:
        seed = 7 if "ahead" in request.param else None
        opened = Simulator(seed=seed, open_image=scale_add.open_image)
    yield opened
    opened.close()


@pytest.fixture
def image(device: Device) -> bytes:
    """A compiled `scale_add` for the device."""
    if isinstance(device, Simulator):
        return b"any"
    try:
        if STUB in os.environ:
            return scale_add.host_image()
        return find_compiler().cubin(scale_add.VARIANT, device.arch)
    except CompileError as error:
        pytest.skip(f"skipped: {error}")


_MISSING: list[str | None] = []


def _cuda() -> Device:
    if STUB not in os.environ:
        if not _MISSING:
            _MISSING.append(probe().missing)
        if _MISSING[0] is not None:
            pytest.skip(f"skipped: {_MISSING[0]}")
    try:
        return open_device()
    except NoDriver as error:
        pytest.skip(f"skipped: {error}")
