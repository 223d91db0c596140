"""Products, convolutions and attention of the GPU run, tried on the simulator."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from diffusion_rt.bench import gpu_compile, gpu_products, gpu_tactics
from diffusion_rt.bench.gpu_bench import Bench
from diffusion_rt.bench.gpu_chip import SIMULATOR
from diffusion_rt.bench.gpu_products import Shape, checked, ways
from diffusion_rt.bench.gpu_rows import Row, Sink
from diffusion_rt.bench.gpu_shapes import Attention, Conv, Gemm, decode, of_kind, step
from diffusion_rt.kernels import conv
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.compile import CompileError, host_library
from diffusion_rt.kernels.driver import limits_of


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    try:
        host_library([CATALOGUE["select_rows"]])
    except CompileError as error:
        pytest.skip(f"skipped: {error}")


def rows_of(part: Any, folder: Path | None = None) -> list[Row]:
    rows: list[Row] = []
    part(Sink("part", SIMULATOR, folder, time.time() + 600, "command", "a" * 40, rows.append))
    return rows


@pytest.mark.parametrize("part", ["attention", "products", "convolutions"])
def test_every_family_is_right_and_timed(part: str, tmp_path: Path) -> None:
    rows = rows_of(getattr(gpu_tactics, part), tmp_path)
    assert {row.outcome for row in rows} == {"right", "untimed"}
    kinds = 2 if part == "products" else 1  # with a gate and without
    assert sum(row.outcome == "untimed" for row in rows) == 2 * kinds, "cold and warm"
    families = {("sm90" in row.note) for row in rows if row.outcome == "right"}
    assert families >= ({False, True} if part == "products" else {False})


def test_a_way_that_is_wrong_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bias is another one than the reference's."""
    right = checked

    def other(shape: Shape) -> Any:
        made = right(shape)
        return replace(made, inputs=(*made.inputs[:2], made.inputs[2] + np.float16(0.1)))

    monkeypatch.setattr(gpu_products, "checked", other)
    rows = rows_of(gpu_tactics.products)
    assert {row.outcome for row in rows} == {"wrong", "not run"}
    assert {row.name for row in rows} == {"gemm", "geglu"}
    assert "no way was right" in rows[-1].note


def test_a_result_that_nobody_wrote_is_wrong() -> None:
    bench = Bench(simulated=True)
    (way, *_) = ways(Gemm(17, 24, 40), bench.device.limits)
    built = way.build(bench, 0)
    made = checked(way.shape)
    assert built.check({"output": np.full(made.shape, np.nan, np.float16)}) == float("inf")
    spoiled = np.asarray((made.inputs[0].astype("f4") @ made.inputs[1].astype("f4").T), "f2")
    assert built.check({"output": spoiled}) > 1, "without its bias"
    bench.close()


def test_what_is_checked_of_a_convolution_is_what_torch_makes_of_all_of_it() -> None:
    for shape in (Conv(2, 5, 4, 16, 8), Conv(1, 4, 6, 8, 8, 2), Conv(1, 1, 1, 8, 8)):
        made = checked(shape)
        x, weight, bias = (torch.from_numpy(values).double() for values in made.inputs)
        whole = functional.conv2d(
            x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias, shape.stride, 1
        ).permute(0, 2, 3, 1)
        assert whole.shape == made.shape
        np.testing.assert_allclose(made.rows(whole.numpy()), made.truth, rtol=1e-9, atol=1e-9)


def test_what_is_checked_over_an_enlarged_picture_is_of_all_of_it() -> None:
    for shape in (Conv(2, 10, 6, 16, 8, enlarged=True), Conv(1, 2, 2, 8, 8, enlarged=True)):
        made = checked(shape)
        x, weight, bias = made.inputs
        whole = conv.reference(x, weight, bias=bias)
        assert whole.shape == made.shape
        np.testing.assert_allclose(made.rows(whole), made.truth, rtol=1e-12, atol=1e-12)
        (way, *_) = ways(shape, limits_of(90))
        assert way.flop == shape.flop * 4 // 9


def test_what_is_checked_of_attention_is_what_torch_makes_of_all_of_it() -> None:
    made = checked(Attention(2, 3, 70, 9, 32))
    q, k, v = (torch.from_numpy(values).double().transpose(1, 2) for values in made.inputs)
    whole = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).numpy()
    np.testing.assert_allclose(made.rows(whole), made.truth, rtol=1e-9, atol=1e-9)
    error = np.abs(made.plain - made.truth).max()
    assert 0 < error < 0.01


@pytest.mark.parametrize("arch", [80, 90, 120])
@pytest.mark.parametrize("kind", [Gemm, Conv, Attention])
def test_every_shape_of_a_step_has_ways_on_every_chip(kind: Any, arch: int) -> None:
    limits = limits_of(arch)
    for shape, _ in of_kind(step(1024, 1024), kind):
        found = ways(shape, limits)
        assert found
        assert len({way.tactic for way in found}) == len(found), "two ways of one name"
        for way in found:
            assert way.variant in CATALOGUE
            assert ("sm90" in way.variant) <= (arch == 90)
    for shape, _ in of_kind(decode(1024, 1024), Attention):
        assert ways(shape, limits)


def test_every_kernel_is_compiled_for_the_chip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows = rows_of(gpu_compile.compile_all, tmp_path / "out")
    if rows[0].outcome == "not run":
        pytest.skip(f"skipped: {rows[0].note}")
    assert [row.outcome for row in rows] == ["right", "untimed"]
    assert len(list((tmp_path / "diffusion-rt" / "kernels").iterdir())) == gpu_compile.FEW
