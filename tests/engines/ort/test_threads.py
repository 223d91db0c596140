"""How many cores there are to use, by what the system says."""

import os
from pathlib import Path

import pytest

from diffusion_rt.engines.ort.threads import usable_cores


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight hyperthreads on four cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for cpu in range(8):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    (tmp_path / "fs/cgroup/cpu").mkdir(parents=True)
    return tmp_path


def test_hyperthreads_count_once(system: Path) -> None:
    assert usable_cores(system) == 4


def test_only_what_the_process_may_use(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6})
    assert usable_cores(system) == 2


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("150000 100000", 2), ("50000 100000", 1), ("x", 4)]
)
def test_a_quota_of_control_groups_2(system: Path, quota: str, cores: int) -> None:
    (system / "fs/cgroup/cpu.max").write_text(f"{quota}\n")
    assert usable_cores(system) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 4), ("300000", 3), ("900000", 4)])
def test_a_quota_of_control_groups_1(system: Path, quota: str, cores: int) -> None:
    (system / "fs/cgroup/cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
    (system / "fs/cgroup/cpu/cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(system) == cores


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))
