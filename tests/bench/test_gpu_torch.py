"""The yardsticks, tried on CPU tensors at the smallest shapes."""

import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="skipped: no torch")

from diffusion_rt.bench import gpu_torch, records  # noqa: E402
from diffusion_rt.bench.gpu_chip import SIMULATOR, Chip  # noqa: E402
from diffusion_rt.bench.gpu_rows import Row, Sink, parse_row  # noqa: E402
from diffusion_rt.bench.gpu_shapes import (  # noqa: E402
    Attention,
    Conv,
    Gemm,
    GroupNorm,
    LayerNorm,
    Shape,
    Shapes,
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


CHIP = Chip(name="a chip", arch=90, multiprocessors=132, memory=1 << 37, l2_bytes=1, cuda="13.0")


def real(folder: Path) -> gpu_torch.Yard:
    """A yard that believes in its GPU."""
    yard = gpu_torch.Yard(sink(folder))
    yard.cuda, yard.sink.chip = True, CHIP
    return yard


def test_all_of_a_kind_come_to_the_sum_of_their_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_torch, "_one", lambda *_: 1e-3)
    shapes: Shapes = Counter({Gemm(1, 2, 3): 4, Gemm(2, 2, 3): 6, LayerNorm(1, 1): 100})
    gpu_torch._all(real(tmp_path), Gemm, shapes, "step")
    (row,) = rows(capsys)
    assert row.name == "all gemm"
    assert "10.00 ms" in row.note


def test_a_sum_that_lacks_one_is_not_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> float:
        raise RuntimeError("no engine")

    monkeypatch.setattr(gpu_torch, "_one", broken)
    gpu_torch._all(real(tmp_path), Gemm, Counter({Gemm(1, 2, 3): 4}), "step")
    assert [row.outcome for row in rows(capsys)] == ["not run"]


def test_the_best_backend_is_named_and_the_others_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = real(tmp_path)
    taken = iter([3e-6, 1e-6, 2e-6])
    monkeypatch.setattr(gpu_torch.Yard, "times", lambda *_: [next(taken)])
    assert gpu_torch._attention(yard, Attention(1, 1, 4, 4), 1, "step") == 1e-6
    kept = records.read(tmp_path)
    assert [record.setting["backend"] for record in kept] == ["cudnn", "flash", "efficient"]
    assert {record.contender for record in kept} == {"torch"}
    assert "by flash of torch" in rows(capsys)[-1].note


class FakeEvent:
    """Events an eighth of a second of the device's time apart."""

    clock = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = -1.0

    def record(self) -> None:
        FakeEvent.clock += 120.0
        self.at = FakeEvent.clock

    def elapsed_time(self, other: "FakeEvent") -> float:
        return other.at - self.at


def test_times_are_those_of_a_call_in_a_captured_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    graph = SimpleNamespace(replay=lambda: calls.append("replay"))

    def capture(captured: object) -> nullcontext[None]:
        calls.append("capture")
        return nullcontext()

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda chosen: nullcontext(),
        "synchronize": lambda: None,
        "CUDAGraph": lambda: graph,
        "graph": capture,
        "Event": FakeEvent,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    works = [lambda: calls.append("a"), lambda: calls.append("b")]
    found = real(tmp_path).times(works, 4)
    assert found == pytest.approx([0.03] * 8)
    assert calls == [*"abaa", "capture", *"abab", *["replay"] * 10]
