"""The real SDXL base architecture, exported within the memory of a small machine."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.engines.trt.options import Options
from diffusion_rt.engines.trt.prepare import prepare
from diffusion_rt.runtime.inspect_plan import inspect_plan, report
from support.full_size import make_full_size_checkpoint
from support.parser_list import problems

README = Path(__file__).parents[2] / "README.md"
MOST_MEMORY = 2_000_000_000  # bytes resident at the peak
# Its own peak: `ru_maxrss` would begin with that of the process that started it.
EXPORT = """
import resource, sys
from pathlib import Path
from diffusion_rt.__main__ import main

assert main(["export", sys.argv[1], "--no-check", "--format=json"]) == 0
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
used = resource.getrusage(resource.RUSAGE_SELF)
print(1024 * int(status["VmHWM"].split()[0]), used.ru_utime + used.ru_stime, file=sys.stderr)
"""
ROOM = 9_000_000_000  # bytes of disk
HALF = [Options(wide_attention=wide) for wide in (False, True)]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on the disk that is emptied whatever happens."""
    free = shutil.disk_usage(tmp_path).free
    assert free > ROOM, f"{tmp_path} has {free / 1e9:.0f} GB free, this test writes 7; set TMPDIR"
    yield tmp_path / "sdxl"
    shutil.rmtree(tmp_path / "sdxl", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_sdxl_base_is_exported_without_its_weights_in_memory(
    folder: Path,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = make_full_size_checkpoint(folder)
    assert 3.4e9 < weights < 3.6e9
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - started
    peak, cpu = map(float, done.stderr.split()[-2:])
    with capsys.disabled():
        print(f"\nfull-size export: {seconds:.0f} s, {cpu:.0f} s of CPU, {peak / 1e9:.2f} GB")
    record_property("seconds", seconds)
    assert peak < MOST_MEMORY
    graphs = json.loads(done.stdout)["graphs"]
    assert sum(map(len, graphs.values())) == 14
    model = open_model(folder)
    step = model.manifest.graphs["unet_step"]["float16"]
    assert len(step.inputs) == 1 + 17 + 2 * 70  # latent, resnets, cross attentions
    size = sum(
        model.manifest.files[v.file].size for g in graphs for v in model.manifest.graphs[g].values()
    )
    assert size < 10_000_000
    for graph in model.manifest.graphs:  # as TensorRT is given them
        for options in (Options(precision="float32", vae_precision="float32"), *HALF):
            assert problems(prepare(model, graph, options.edits(graph)).content) == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))  # what was measured here is not README's
    costs = inspect_plan(folder, bucket="1024x1024")
    assert costs["graphs"]["unet_step"]["operations"] <= 900
    assert round(costs["step_flops"]["whole"] / 1e12, 2) == 13.52
    assert f"```text\n{report(costs)}\n```" in README.read_text(), "write README's plan:sdxl anew"
