"""The real SDXL base architecture, exported within the memory of a small machine."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffusion_rt.engines.model_folder import open_model
from support.full_size import make_full_size_checkpoint

MOST_MEMORY = 2_000_000_000  # bytes resident at the peak
ROOM = 9_000_000_000  # bytes of disk


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
    folder: Path, record_property: pytest.RecordProperty, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = make_full_size_checkpoint(folder)
    assert 3.4e9 < weights < 3.6e9
    started = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_rt", "export", folder, "--no-check", "--format=json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # The peak of all children so far: an upper bound of this one's.
    peak = 1024 * after.ru_maxrss
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
