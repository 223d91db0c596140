"""What is said of a machine, from what its kernel says."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.bench import machine
from diffusion_rt.bench.machine import Device


def test_a_processor_by_the_kernels_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["processor\t: 0", "cpu family\t: 25", "model\t\t: 17", "model name\t: A: fast one"]
    lines += ["cpu MHz\t\t: 2596.150", "", "model name\t: B"]
    (tmp_path / "cpu").write_text("\n".join(lines))
    (tmp_path / "memory").write_text("MemTotal:       1024 kB\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpu")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "memory")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    found = machine.this_cpu()
    assert (found.name, found.cores, found.memory) == ("A: fast one", 2, 1 << 20)
    assert found.mhz == 2596
    assert str(found) == "A: fast one (family 25, model 17), 2 cores"


def test_a_machine_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CPUINFO", "MEMINFO"):
        monkeypatch.setattr(machine, name, tmp_path / "missing")
    found = machine.this_cpu()
    assert found.name
    assert (found.memory, found.model, found.mhz) == (0, None, None)


def test_twins_are_one_device_and_others_are_not() -> None:
    one = Device(kind="cpu", name="A", cores=2, memory=25_276_502_016, model="family 25, model 17")
    twin = replace(one, memory=one.memory - 400_000, mhz=3100)
    assert twin.key == one.key
    changes: list[dict[str, Any]] = [
        {"memory": one.memory - (4 << 30)},
        {"model": None},
        {"cores": 4},
    ]
    for change in changes:
        assert replace(one, **change).key != one.key


def test_the_commit_and_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=A", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "src" / "diffusion_rt").mkdir(parents=True)
    (tmp_path / "bench" / "results").mkdir(parents=True)
    source, result = tmp_path / "src" / "a.py", tmp_path / "bench" / "results" / "a.jsonl"
    for path in (source, result):
        path.touch()
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    head = git("rev-parse", "HEAD")
    assert machine.commit() == (head, False)
    result.write_text("one more")
    (tmp_path / "bench" / "README.md").touch()
    assert machine.commit() == (head, False), "records change nothing that is measured"
    source.write_text("changed")
    assert machine.commit() == (head, True)
    monkeypatch.setattr(machine, "ROOT", tmp_path / "src")
    assert machine.commit() == (None, False)
