"""What the GPU run checks of kernels and of a denoise, tried on the simulator and on the stub."""

import importlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_rt.bench import gpu_denoise, gpu_kernels, gpu_norms
from diffusion_rt.bench.gpu_bench import Bench
from diffusion_rt.bench.gpu_case import Case, run
from diffusion_rt.bench.gpu_cases import cases
from diffusion_rt.bench.gpu_chip import SIMULATOR
from diffusion_rt.bench.gpu_norms import GroupNorm, LayerNorm
from diffusion_rt.bench.gpu_rows import Row, Sink, parse_row
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.compile import CompileError, host_library
from support import stub_driver


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    try:
        host_library([CATALOGUE["select_rows"]])
    except CompileError as error:
        pytest.skip(f"skipped: {error}")


def rows_of(part: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[Row]:
    part(Sink("part", SIMULATOR, tmp_path, time.time() + 600, "command", "a" * 40))
    found = [parse_row(line) for line in capsys.readouterr().out.splitlines()]
    return [row for row in found if row is not None]


def test_every_case_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(gpu_kernels.check, tmp_path, capsys)
    checked = [row for row in rows if row.outcome == "right"]
    assert [row.name for row in checked] == [case.name for case in cases(tiny=True)]
    assert len((tmp_path / "gpu-right.jsonl").read_text().splitlines()) == len(checked)


def test_kernels_without_a_case_are_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_kernels, "cases", lambda tiny: [] if tiny else cases(tiny=tiny)[:1])
    (row,) = rows_of(gpu_kernels.check, tmp_path, capsys)
    assert row.outcome == "noted"
    count, _, families = row.note.partition(" have no case of their own: ")
    covered = set(cases(tiny=False)[0].variants)
    assert 0 < int(count) < len(CATALOGUE) - len(covered), "products are checked in their own parts"
    assert {"layer", "guided", "prepare"} <= set(families.split(", "))
    monkeypatch.undo()
    row = rows_of(gpu_kernels.check, tmp_path, capsys)[-1]
    assert int(row.note.split()[0]) < int(count)
    assert "guided" not in row.note


def test_every_full_case_can_be_launched() -> None:
    """Launch rules and sizes of all shapes, though no simulator could run them."""
    names = [json.dumps([case.name, case.setting]) for case in cases(tiny=False)]
    assert len(set(names)) == len(names), "two records of one key"
    for case in cases(tiny=False):
        assert set(case.variants) <= set(CATALOGUE)
        assert case.nbytes > 0


def test_a_wrong_kernel_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is given another epsilon than its reference."""
    right = LayerNorm("float16", 3, 40)

    class Wrong(LayerNorm):
        def build(self, bench: Bench, seed: int) -> Any:
            built = right.build(bench, seed)
            launch = bench.launch
            arguments: list[Any] = []

            def note(name: str, *given: Any) -> None:
                arguments.extend([name, *given])

            monkeypatch.setattr(bench, "launch", note)
            built.enqueue()
            monkeypatch.setattr(bench, "launch", launch)
            return replace(built, enqueue=lambda: launch(*arguments[:-1], 0.5))

    monkeypatch.setattr(gpu_kernels, "cases", lambda tiny: [Wrong("float16", 3, 40)])
    rows = rows_of(gpu_kernels.check, tmp_path, capsys)
    assert rows[0].outcome == "wrong"
    assert "times the error allowed" in rows[0].note


@pytest.mark.parametrize("most", [1, 2 * 9 * 10, 1 << 20])
def test_of_a_large_normalisation_whole_groups_are_checked(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = GroupNorm("float16", True, 2, 9, 40, 4)
    monkeypatch.setattr(gpu_norms, "MOST_CHECKED", most)
    wanted = range(40) if most == 1 << 20 else [*range(10), *range(30, 40)]
    assert case.channels_checked().tolist() == list(wanted)
    bench = Bench(simulated=True)
    built = case.build(bench, 0)
    found = run(bench, built)
    assert built.check(found) <= 1
    for channel in (0, 39):
        spoiled = found["output"].copy()
        spoiled[1, 8, channel] += np.float16(0.1)
        assert built.check({"output": spoiled}) > 1
    spoiled[0, 0, 15] = np.nan
    assert built.check({"output": spoiled}) == float("inf")
    bench.close()


def test_an_output_nobody_writes_is_found(tmp_path: Path) -> None:
    bench = Bench(simulated=True)
    built = LayerNorm("float16", 3, 40).build(bench, 0)
    assert built.check(run(bench, replace(built, enqueue=lambda: None))) == float("inf")
    bench.close()


def test_a_case_that_fails_does_not_end_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[Case] = [LayerNorm("float16", 3, 41), LayerNorm("float16", 3, 40)]
    monkeypatch.setattr(gpu_kernels, "cases", lambda tiny: chosen)
    rows = rows_of(gpu_kernels.check, tmp_path, capsys)
    assert [row.outcome for row in rows[:2]] == ["wrong", "right"]
    assert "a multiple of 8" in rows[0].note


def test_no_row_begins_when_time_is_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in (gpu_kernels.check, gpu_kernels.measure):
        part(Sink("part", SIMULATOR, tmp_path, 0, "command"))
        rows = [parse_row(line) for line in capsys.readouterr().out.splitlines()]
        assert rows[-1] is not None
        assert rows[-1].note == "out of time from here on"


def test_everything_is_timed_and_nothing_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(gpu_kernels.measure, tmp_path, capsys)
    assert {row.outcome for row in rows} == {"untimed"}
    names = [row.name for row in rows]
    for case in cases(tiny=True):
        assert names.count(case.name) == (2 if case.cold else 1)
    assert not list(tmp_path.iterdir())


def test_one_capture_serves_every_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(gpu_denoise.denoise, tmp_path, capsys)
    assert [row.outcome for row in rows] == ["right"] * 4 + ["untimed"] * 3


def test_a_wrong_denoise_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is given another guidance than the reference."""
    fill = gpu_denoise.Loop.fill

    def other(loop: Any, plan: Any, *rest: Any) -> None:
        changed = plan.copy()
        changed["guidance"] *= 1.02
        fill(loop, changed, *rest)

    monkeypatch.setattr(gpu_denoise.Loop, "fill", other)
    rows = rows_of(gpu_denoise.denoise, tmp_path, capsys)
    assert [row.outcome for row in rows[:4]] == ["wrong"] * 4


def test_a_step_that_is_left_out_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = gpu_denoise.Loop.replay
    monkeypatch.setattr(gpu_denoise.Loop, "replay", lambda loop, count: replay(loop, count - 1))
    rows = rows_of(gpu_denoise.denoise, tmp_path, capsys)
    assert [row.outcome for row in rows[:4]] == ["wrong"] * 4
    assert "the cursor stands at 2" in rows[0].note


def test_plain_and_true_denoise_differ_by_rounding_alone() -> None:
    values = gpu_denoise.request(0, 2, 5, 1, 512)
    truth = gpu_denoise.on_host(values, plain=False)
    plain = gpu_denoise.on_host(values, plain=True)
    assert 0 < np.abs(plain - truth).max() < gpu_denoise.LEAST_MOST


OVER_STUB = """
import sys, time
from pathlib import Path
from collections import Counter
from diffusion_rt.bench import gpu_bench, gpu_cases, gpu_denoise, gpu_device, gpu_kernels
from diffusion_rt.bench import gpu_tactics
from diffusion_rt.bench.gpu_chip import Chip
from diffusion_rt.bench.gpu_rows import Sink

class Host:
    def image(self, variant, arch):
        assert arch == 90
        return gpu_bench._host_image(variant.name)

gpu_bench.ImageCache = lambda folder: Host()
tiny = gpu_cases.cases(tiny=True)
gpu_kernels.cases = lambda tiny: TINY
TINY = tiny
gpu_kernels.COPY_BYTES, gpu_kernels.LAUNCHES, gpu_kernels.REPEATS = 2 << 20, 4, 3
gpu_kernels.COPY_BLOCK = 1 << 20
gpu_denoise.FULL, gpu_denoise.TURNS = gpu_denoise.TINY, 2
gpu_tactics._step = lambda: Counter(gpu_tactics.TINY.values())
gpu_tactics.MOST_WAYS = gpu_tactics.QUICK = gpu_tactics.REPEATS = 1
chip = Chip(name="stub", arch=90, multiprocessors=1, memory=1, l2_bytes=1024, cuda="13.0")
sink = Sink("part", chip, Path(sys.argv[1]), time.time() + 600, "command", "a" * 40)
parts = (gpu_device.layer, gpu_kernels.check, gpu_kernels.measure, gpu_denoise.denoise)
for part in (*parts, gpu_tactics.attention, gpu_tactics.products):
    part(sink)
"""


def test_the_real_bindings_take_every_call(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same parts as on a GPU, over the stub that stands for its driver."""
    pytest.importorskip("cuda.bindings.driver", reason="skipped: no cuda-python")
    stub = stub_driver.build(tmp_path_factory.mktemp("stub"))
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", OVER_STUB, str(tmp_path)],
        env=stub_driver.environment(
            stub, PYTHONPATH=path, PYTHONSAFEPATH="1", XDG_CACHE_HOME=str(tmp_path / "cache")
        ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [row for row in map(parse_row, done.stdout.splitlines()) if row is not None]
    assert not [row for row in rows if row.bad], rows
    names = {row.name for row in rows if row.outcome == "timed"}
    assert names >= {
        "copy",
        "layer_norm.float16",
        "denoise.host",
        "denoise.device",
        "gemm",
        "attention",
    }
    assert len((tmp_path / "gpu-time.jsonl").read_text().splitlines()) >= 10


def test_what_the_bindings_call_it_is_what_we_ask_for() -> None:
    bindings = pytest.importorskip("cuda.bindings.driver", reason="skipped: no cuda-python")
    chip = importlib.import_module("diffusion_rt.bench.gpu_chip")
    names = bindings.CUdevice_attribute
    for name, value in (
        ("MULTIPROCESSOR_COUNT", chip._MULTIPROCESSORS),
        ("L2_CACHE_SIZE", chip._L2_BYTES),
        ("COMPUTE_CAPABILITY_MAJOR", chip._MAJOR),
        ("COMPUTE_CAPABILITY_MINOR", chip._MINOR),
    ):
        assert int(getattr(names, f"CU_DEVICE_ATTRIBUTE_{name}")) == value
