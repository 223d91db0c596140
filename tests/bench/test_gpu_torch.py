"""The yardsticks, tried on CPU tensors at the smallest shapes."""

import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="skipped: no torch")

from diffusion_rt.bench import gpu_torch  # noqa: E402
from diffusion_rt.bench.gpu_chip import SIMULATOR  # noqa: E402
from diffusion_rt.bench.gpu_rows import Row, Sink, parse_row  # noqa: E402
from diffusion_rt.bench.gpu_shapes import (  # noqa: E402
    Conv,
    Gemm,
    GroupNorm,
    LayerNorm,
    Shape,
)


def sink(folder: Path, deadline: float = 9e9) -> Sink:
    return Sink("yardsticks", SIMULATOR, folder, max(deadline, 0), "command", "a" * 40)


def rows(capsys: pytest.CaptureFixture[str]) -> list[Row]:
    found = [parse_row(line) for line in capsys.readouterr().out.splitlines()]
    return [row for row in found if row is not None]


def test_every_kind_runs_and_nothing_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_torch.yardsticks(sink(tmp_path))
    found = rows(capsys)
    assert {row.outcome for row in found} == {"untimed"}, found
    names = {row.name for row in found}
    assert names == {"matmul", "copy", "attention", "gemm", "conv", "groupnorm", "layernorm"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shape", "result"),
    [
        (Gemm(6, 4, 5), (6, 4)),
        (Conv(2, 4, 6, 3, 5), (2, 5, 4, 6)),
        (Conv(1, 4, 6, 3, 5, 2), (1, 5, 4, 6)),
        (GroupNorm(2, 9, 64, True), (2, 64, 9, 1)),
        (LayerNorm(3, 8), (3, 8)),
    ],
)
def test_a_shape_is_the_work_it_names(
    shape: Shape, result: tuple[int, ...], tmp_path: Path
) -> None:
    works, nbytes = gpu_torch._works(gpu_torch.Yard(sink(tmp_path)), shape)
    out = works[0]()
    assert tuple(out.shape) == result
    assert torch.isfinite(out).all()
    assert nbytes > 0


def test_a_row_that_fails_is_said_and_the_next_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> float:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(gpu_torch, "_attention", broken)
    gpu_torch.yardsticks(sink(tmp_path))
    found = rows(capsys)
    assert [row.note for row in found if row.outcome == "not run"] == [
        "RuntimeError: CUDA error: out of memory"
    ] * 2
    assert "gemm" in {row.name for row in found}


def test_no_row_begins_when_time_is_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu_torch.yardsticks(sink(tmp_path, time.time() - 1))
    late = [row for row in rows(capsys) if row.outcome == "not run"]
    assert {row.note for row in late} == {"out of time from here on"}


def test_inputs_are_as_many_as_outlast_the_cache(tmp_path: Path) -> None:
    yard = gpu_torch.Yard(sink(tmp_path))
    assert yard.sets(1) == 1, "on a CPU nothing is measured"
    yard.cuda = True
    assert [yard.sets(n) for n in (1, 1024, 1 << 30)] == [gpu_torch.MOST_SETS, 3, 2]
