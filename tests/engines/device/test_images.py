"""Kernels on a device: loaded once, from PTX where the driver refuses the chip's own image."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.errors import Fault
from diffusion_rt.kernels.cache import Progress
from diffusion_rt.kernels.catalogue import CATALOGUE, Variant
from diffusion_rt.kernels.driver import BadImage
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.kernels.driver.simulator.module import Lookup

SELECT, STEP = CATALOGUE["select_rows"], CATALOGUE["guided_step.float16"]
OWN = replace(STEP, name="own", suffix="a", archs=(90,))
OTHER = replace(OWN, name="other")
CUBINS = ("sm_90", "sm_90a")


class Images:
    """Images that say what they are."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.filled: list[tuple[str, int | None]] = []

    def image(self, variant: Variant, arch: int | None) -> bytes:
        known = arch in variant.archs
        form = variant.target(arch) if arch is not None and known else variant.ptx_target
        self.asked.append((variant.name, form))
        return form.encode()

    def fill(
        self, wanted: Iterable[tuple[Variant, int | None]], progress: Progress | None = None
    ) -> None:
        self.filled += [(variant.name, arch) for variant, arch in wanted]


class Unknown(Simulator):
    """A chip to come."""

    arch = 130


def gpu(*refused: str, chip: type[Simulator] = Simulator, arch: int = 90) -> tuple[Gpu, Images]:
    def open_image(image: bytes) -> Lookup:
        if image.decode() in refused:
            raise BadImage("made by too new a compiler")
        return lambda name: lambda launch, packed: None

    images = Images()
    return Gpu(chip(arch=arch, open_image=open_image), images), images


def test_a_kernel_is_loaded_once() -> None:
    device, images = gpu()
    assert device.kernel(SELECT) is device.kernel(SELECT)
    device.prepare([SELECT, SELECT])
    assert images.asked == [("select_rows", "sm_90")]
    assert images.filled == []


def test_a_chip_that_nobody_knows_gets_ptx() -> None:
    device, images = gpu(chip=Unknown)
    device.kernel(SELECT)
    assert images.asked == [("select_rows", "compute_80")]


def test_kernels_are_made_together_before_the_first_of_them_is_loaded() -> None:
    device, images = gpu()
    device.compile([SELECT, STEP, OWN, STEP])
    assert images.filled == [(STEP.name, 90), ("own", 90)]
    assert images.asked == [("select_rows", "sm_90")]  # told whether the driver takes such images
    device.prepare([STEP, OWN])
    assert images.asked[1:] == [(STEP.name, "sm_90"), ("own", "sm_90a")]


def test_where_the_driver_refuses_the_image_it_compiles_ptx_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device, images = gpu("sm_90")
    device.kernel(SELECT)
    device.kernel(STEP)
    assert images.asked == [  # the second is not made for this chip in vain
        ("select_rows", "sm_90"),
        ("select_rows", "compute_80"),
        (STEP.name, "compute_80"),
    ]
    assert len(caplog.records) == 1
    assert "update it" in caplog.text


def test_what_is_refused_as_ptx_too_is_an_error() -> None:
    device, _ = gpu("sm_90", "compute_80")
    with pytest.raises(Fault, match="kernel select_rows: made by too new a compiler"):
        device.kernel(SELECT)
    with pytest.raises(Fault, match="kernel select_rows: made by too new a compiler"):
        device.prepare([OWN])
    assert not device.plain


def test_instructions_of_one_chip_are_compiled_by_the_driver_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device, images = gpu(*CUBINS)
    device.prepare([SELECT, OWN])
    assert images.filled == [("own", None)]
    assert images.asked[2:] == [("own", "compute_90a")]
    assert device.kernel(OWN).name == STEP.kernel
    assert not device.plain
    assert len(caplog.records) == 1


@pytest.mark.parametrize("cubins", [True, False])
def test_where_the_driver_takes_no_form_of_them_they_are_left_out_and_that_is_said_once(
    cubins: bool, caplog: pytest.LogCaptureFixture
) -> None:
    device, images = gpu("compute_90a", "sm_90a", *(() if cubins else ("sm_90",)))
    device.prepare([OWN, SELECT, OTHER, STEP])
    assert device.plain
    assert not any(name == "other" for name, _ in images.asked)
    told = [record.message for record in caplog.records if "this very chip" in record.message]
    assert len(told) == 1
    assert "update it (made by too new a compiler)" in told[0]
    assert len(caplog.records) == (1 if cubins else 2)
    device.kernel(STEP)
    count = len(images.asked), len(images.filled)
    device.prepare([OWN, OTHER, SELECT])
    assert (len(images.asked), len(images.filled)) == count
    with pytest.raises(Fault, match="kernel own"):
        device.kernel(OWN)


def test_what_came_as_ptx_of_the_oldest_chip_does_not_overlap() -> None:
    gemm = next(v for v in CATALOGUE.values() if v.overlaps and v.kernel == "gemm")
    own = replace(OWN, overlaps=True)
    compiled, _ = gpu()
    compiled.prepare([gemm, own])
    assert compiled.may_overlap(gemm)
    assert not compiled.may_overlap(SELECT)
    fallen_back, _ = gpu(*CUBINS)
    fallen_back.prepare([gemm, own])
    assert not fallen_back.may_overlap(gemm)
    assert fallen_back.may_overlap(own)
    for other, _ in (
        gpu(arch=89),
        gpu(chip=Unknown),
    ):  # without the wait; from PTX, as none knows it
        other.kernel(gemm)
        assert not other.may_overlap(gemm)
