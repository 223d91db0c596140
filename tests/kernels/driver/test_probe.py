"""Asking for a driver never hangs, never breaks, and always says the way out."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.kernels.driver import probe as module
from diffusion_rt.kernels.driver.probe import probe
from support import stub_driver


def test_this_machine_is_described() -> None:
    found = probe()
    assert (found.missing is None) == bool(found.devices)
    if found.missing is not None:
        assert "\n" not in found.missing
        assert ";" in found.missing


def test_the_stub_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.driver", reason="skipped: no cuda-python")
    for name, value in stub_driver.environment(stub_driver.build(tmp_path)).items():
        monkeypatch.setenv(name, value)
    assert probe() == module.Probe(("stub",), "13.0", None)


@pytest.mark.parametrize(
    ("script", "timeout", "said"),
    [
        ("import time; time.sleep(60)", 1, "did not answer in 1 s"),
        ("import os; os.abort()", 60, "ended with status -6"),
        ("", 60, "ended with status 0"),
    ],
)
def test_a_driver_that_hangs_or_crashes_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, timeout: float, said: str
) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(script)
    monkeypatch.setattr(module, "__file__", str(bad))
    found = probe(timeout=timeout)
    assert said in str(found.missing)
    assert found.devices == ()


def test_the_probe_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports nothing of ours, so it works as a file in any process."""
    seen: list[list[str]] = []

    def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        seen.append(command)
        answer = '{"devices": [], "driver": null, "missing": "x"}'
        return subprocess.CompletedProcess(command, 0, answer, "")

    monkeypatch.setattr(subprocess, "run", run)
    assert probe().missing == "x"
    assert "diffusion_rt.kernels" not in Path(seen[0][-1]).read_text()
