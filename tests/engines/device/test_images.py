"""Kernels on a device: loaded once, from PTX where the driver refuses the chip's own image."""

import logging
from dataclasses import replace

import pytest

from diffusion_rt.engines.device.gpu import NEWER, Gpu
from diffusion_rt.engines.errors import Fault
from diffusion_rt.kernels.catalogue import CATALOGUE, Variant
from diffusion_rt.kernels.driver import BadImage
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.kernels.driver.simulator.module import Lookup

SELECT, STEP = CATALOGUE["select_rows"], CATALOGUE["guided_step.float16"]


class Images:
    """Images that say what they are."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def image(self, variant: Variant, arch: int) -> bytes:
        self.asked.append((variant.name, arch))
        return b"ptx" if arch == NEWER else b"cubin"


def gpu(*refused: bytes, arch: int = 90) -> tuple[Gpu, Images]:
    def open_image(image: bytes) -> Lookup:
        if image in refused:
            raise BadImage("made by too new a compiler")
        return lambda name: lambda launch, packed: None

    images = Images()
    return Gpu(Simulator(arch=arch, open_image=open_image), images), images


def test_a_kernel_is_loaded_once() -> None:
    device, images = gpu()
    assert device.kernel(SELECT) is device.kernel(SELECT)
    assert images.asked == [("select_rows", 90)]


def test_where_the_driver_refuses_the_image_it_compiles_ptx_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device, images = gpu(b"cubin")
    with caplog.at_level(logging.WARNING):
        device.kernel(SELECT)
        device.kernel(STEP)
    assert images.asked == [
        (variant.name, arch) for variant in (SELECT, STEP) for arch in (90, NEWER)
    ]
    assert len(caplog.records) == 1
    assert "update it" in caplog.text


def test_what_is_refused_as_ptx_too_is_an_error() -> None:
    device, _ = gpu(b"cubin", b"ptx")
    with pytest.raises(Fault, match="kernel select_rows: made by too new a compiler"):
        device.kernel(SELECT)


def test_instructions_of_one_chip_have_no_ptx() -> None:
    device, images = gpu(b"cubin")
    with pytest.raises(Fault, match="kernel select_rows"):
        device.kernel(replace(SELECT, suffix="a", archs=(90,)))
    assert len(images.asked) == 1


def test_what_came_as_ptx_does_not_overlap() -> None:
    gemm = next(v for v in CATALOGUE.values() if v.overlaps and v.kernel == "gemm")
    compiled, _ = gpu()
    compiled.kernel(gemm)
    assert compiled.may_overlap(gemm)
    assert not compiled.may_overlap(SELECT)
    fallen_back, _ = gpu(b"cubin")
    fallen_back.kernel(gemm)
    assert not fallen_back.may_overlap(gemm)
    old, _ = gpu(arch=89)
    old.kernel(gemm)
    assert not old.may_overlap(gemm)
