"""Builds that are interrupted or killed: what was finished stays, and nothing else."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.kernels.driver.simulator import Simulator
from support.model_folders import make_model_folder
from support.simulated_build import (
    SMALL,
    SMALL_GRAPHS,
    files_in,
    folder_of,
    in_place_of_tensorrt,
    small_build,
)

pytestmark = pytest.mark.usefixtures("cache")


def test_ctrl_c_ends_the_build_and_leaves_nothing(shipped: ModelFolder, device: Simulator) -> None:
    folder = folder_of(shipped.path)
    shutil.rmtree(shipped.path / "engines", ignore_errors=True)
    steps: list[int] = []

    def report(stage: str, done: int, total: int) -> None:
        if stage == "unet_step":
            steps.append(done)
            if len(steps) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.005)

    with pytest.raises(KeyboardInterrupt):
        small_build(
            shipped, device, coverage=SMALL, graphs=("unet_prompt", "unet_step"), report=report
        )
    assert len(steps) < 200  # of some 560 layers
    assert files_in(folder) == ["unet_prompt.plan"]  # what was finished stays
    assert not [thread for thread in threading.enumerate() if thread.name == "engine build"]
    again = small_build(shipped, device, coverage=SMALL, graphs=("unet_prompt", "unet_step"))
    assert [built.kept for built in again.built] == [True, False]


def test_a_report_that_fails_ends_the_build_with_its_own_error(
    small: ModelFolder, device: Simulator
) -> None:
    def report(stage: str, done: int, total: int) -> None:
        if stage == "unet_step":
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        small_build(small, device, report=report)
    assert "unet_step.plan" not in files_in(folder_of(small.path))


def test_killed_200_times(tmp_path: Path) -> None:
    """kill -9 at any moment of a build: never a plan that loads and is wrong."""
    make_model_folder(tmp_path / "model", stored="float16")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    script = Path(__file__).parents[2] / "support" / "killed_builds.py"
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(tmp_path / "model"), "200"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["killed"] == 200
    assert found["wrong"] == []
    assert found["whole"] > 100  # plans that were there and right
    assert found["partial"] > 0  # kills that hit a file being written
    assert found["unfinished"] > 50  # builds that a kill left without one of their plans
    folder = folder_of(tmp_path / "model")
    with in_place_of_tensorrt() as device:
        small_build(open_model(tmp_path / "model"), device, force=True)
    assert files_in(folder) == [f"{graph}.plan" for graph in SMALL_GRAPHS]
