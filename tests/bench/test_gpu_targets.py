"""The targets of the GPU run, from records."""

from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.bench.gpu_targets import TARGETS, verdicts
from diffusion_rt.bench.machine import Device
from diffusion_rt.bench.records import Origin, append
from diffusion_rt.bench.spread import spread

DEVICE = Device(kind="gpu", name="a chip", cores=132, memory=1 << 37)


def keep(
    folder: Path,
    benchmark: str,
    measure: str,
    value: float,
    contender: str = "diffusion-rt",
    **more: Any,
) -> None:
    named = {name: more.pop(name) for name in ("against", "unit") if name in more}
    origin = Origin(
        benchmark=benchmark, command="c", device=DEVICE, versions={}, commit=("a" * 40, False)
    )
    append(folder, [origin.record(measure, contender, more, spread=spread([value]), **named)])


def test_without_records_nothing_is_measured(tmp_path: Path) -> None:
    lines = verdicts(tmp_path).splitlines()[1:]
    assert len(lines) == len(TARGETS)
    assert all("not measured" in line for line in lines)


@pytest.mark.parametrize(("milliseconds", "verdict"), [(27.9, "met"), (28.1, "MISSED")])
def test_a_step_is_held_to_its_target(milliseconds: float, verdict: str, tmp_path: Path) -> None:
    for engine, slower in (("native, ways not measured", 1.2), ("native", 1.0), ("trt", 0.5)):
        seconds = milliseconds / 1e3 * slower
        keep(tmp_path, "gpu-time", "step", seconds, engine=engine, size="1024x1024")
    keep(tmp_path, "gpu-time", "step", 1e-3, engine="native", size="512x512")
    (line,) = (line for line in verdicts(tmp_path).splitlines() if "one step" in line)
    assert f"{milliseconds:.3g} ms, {verdict}" in line


def test_more_is_better_of_a_ratio(tmp_path: Path) -> None:
    named = {"against": "compile", "unit": "ratio", "size": "1024x1024"}
    keep(tmp_path, "stages", "picture", 1.29, **named)
    assert "torch.compile, 30 steps: 1.29 x, MISSED (at least 1.3 x, then 2)" in verdicts(tmp_path)
    keep(tmp_path, "stages", "picture", 1.31, **named)
    assert "torch.compile, 30 steps: 1.31 x, met" in verdicts(tmp_path)


def test_attention_is_held_to_the_best_of_torch(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"images": 2, "heads": 10, "queries": 4096, "keys": 4096, "width": 64}
    keep(tmp_path, "gpu-time", "attention", 2e-4, cache="cold", **shape)
    keep(tmp_path, "gpu-time", "attention", 1e-4, cache="warm", **shape)
    for backend, seconds in (("cudnn", 3e-4), ("flash", 4e-4)):
        keep(tmp_path, "gpu-time", "attention", seconds, "torch", backend=backend, **shape)
    assert "20 heads x 4,096: 1.5 x, met" in verdicts(tmp_path)
    assert "40 heads x 1,024: not measured" in verdicts(tmp_path)
