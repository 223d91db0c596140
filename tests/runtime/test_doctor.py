"""Each thing that can be missing is simulated missing, and the report says what to type."""

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from diffusion_rt.__main__ import main
from diffusion_rt.engines.device.needs import LEAST_CUDA
from diffusion_rt.kernels.driver.cuda.context import LEAST_DRIVER
from diffusion_rt.runtime import doctor
from diffusion_rt.runtime.doctor import examine, report
from diffusion_rt.runtime.finding import Finding
from diffusion_rt.runtime.nvidia import Device, Driver

Patch = pytest.MonkeyPatch
GPU = Device("NVIDIA H200", (9, 0), 150 << 30, 149 << 30)


def only(findings: Sequence[Finding]) -> Finding:
    (finding,) = findings
    return finding


def versions(patch: Patch, **known: str | None) -> None:
    """Let the distributions named have these versions, and all others version 1.0."""
    table = {name.replace("_", "-"): version for name, version in known.items()}
    patch.setattr(doctor, "version_of", lambda name: table.get(name, "1.0"))


def unimportable(patch: Patch, name: str, error: Exception) -> None:
    real = importlib.import_module

    def fail(module: str) -> ModuleType:
        if module == name:
            raise error
        return real(module)

    patch.setattr(importlib, "import_module", fail)


@pytest.mark.parametrize("name", list(doctor.CORE))
def test_a_core_package_that_is_missing_or_broken(name: str, monkeypatch: Patch) -> None:
    versions(monkeypatch, **{name: None})
    unimportable(monkeypatch, doctor.CORE[name], ModuleNotFoundError(f"No module named {name}"))
    bad = only([finding for finding in doctor.core_packages() if finding.state != "ok"])
    assert (bad.state, bad.subject, bad.fix) == ("wrong", name, f"pip install {name}")
    versions(monkeypatch)
    bad = only([finding for finding in doctor.core_packages() if finding.state != "ok"])
    assert "fails: No module named" in bad.found
    assert bad.fix == f"pip install --force-reinstall {name}"


@pytest.mark.parametrize(
    ("bindings", "devices", "state"),
    [(None, 1, "wrong"), ("13.5", 0, "wrong"), ("13.5", 1, "absent")],
)
def test_no_onnx_runtime(
    bindings: str | None, devices: int, state: str, monkeypatch: Patch
) -> None:
    """What keeps everybody from drawing, but not who has a GPU and an engine for it."""
    monkeypatch.setattr(doctor, "ask_driver", lambda: Driver("580", (13, 0), (GPU,) * devices))
    versions(monkeypatch, onnxruntime=None, onnxruntime_gpu=None, cuda_bindings=bindings)
    finding = only(doctor.onnx_runtime())
    assert (finding.state, finding.fix) == (state, "pip install 'diffusion-rt[cpu]'")


def test_both_onnx_runtimes(monkeypatch: Patch) -> None:
    versions(monkeypatch)
    finding = only(doctor.onnx_runtime())
    assert finding.state == "wrong"
    assert "both own the same files" in finding.found
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in finding.fix


def test_an_onnx_runtime_that_does_not_load(monkeypatch: Patch) -> None:
    versions(monkeypatch, onnxruntime=None)
    unimportable(monkeypatch, "onnxruntime", ImportError("libcublas.so.13: no such file"))
    finding = only(doctor.onnx_runtime())
    assert finding.state == "wrong"
    assert "libcublas" in finding.found
    assert finding.fix == "pip install --force-reinstall onnxruntime-gpu"


@pytest.mark.parametrize(("cuda", "state"), [(True, "ok"), (False, "absent")])
def test_the_providers_of_onnx_runtime(cuda: bool, state: str, monkeypatch: Patch) -> None:
    versions(monkeypatch, onnxruntime_gpu=None)
    providers = ["CUDAExecutionProvider"] * cuda + ["CPUExecutionProvider"]
    module = ModuleType("onnxruntime")
    module.get_available_providers = lambda: providers  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    runtime, provider = doctor.onnx_runtime()
    assert runtime.state == "ok"
    assert "CPU" in runtime.found
    assert provider.state == state
    assert bool(provider.fix) is not cuda


TURING = Device("Tesla T4", (7, 5), 15 << 30, None)


@pytest.mark.parametrize(
    ("driver", "states", "words"),
    [
        (None, ["absent"], "needed for a GPU only"),
        (Driver("580.1", None, (), "cuInit answers 803 (CUDA_X)"), ["absent"], "cuInit answers"),
        (Driver(None, (13, 0), ()), ["ok", "absent"], "nvidia-smi"),
        (Driver("580.1", (13, 0), (GPU,)), ["ok", "ok"], "sm_90, 150.0 GiB, 149.0 GiB free"),
        (
            Driver("580.1", (13, 0), (GPU, TURING)),
            ["ok", "ok", "absent"],
            "want sm_80 or newer; take --engine ort",
        ),
        (Driver("570.1", (12, 8), (GPU,)), ["absent", "ok"], "it has to compile every kernel"),
        (Driver("550.1", (12, 7), (GPU,)), ["absent", "ok"], "12.7; too old"),
    ],
)
def test_the_driver(
    driver: Driver | None, states: list[str], words: str, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(doctor, "ask_driver", lambda: driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    findings = doctor.nvidia_driver()
    assert all(finding.fix for finding in findings if finding.state != "ok")
    assert [finding.state for finding in findings] == states
    assert words in report(findings)


def test_the_oldest_driver_is_the_one_that_kernels_run_on() -> None:
    assert 1000 * LEAST_CUDA[0] + 10 * LEAST_CUDA[1] == LEAST_DRIVER


def test_export_packages(monkeypatch: Patch) -> None:
    versions(monkeypatch, torch=None, onnx_ir=None)
    finding = only(doctor.export_packages())
    assert finding.state == "absent"
    assert finding.found == "torch, onnx-ir not installed"
    assert "pip install 'diffusion-rt[export]'" in finding.fix
    versions(monkeypatch)
    assert only(doctor.export_packages()).state == "ok"


def test_cores(monkeypatch: Patch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert only(doctor.processor()).found == "2 of 64 cores may be used; OMP_NUM_THREADS=3"


@pytest.mark.parametrize(
    ("free", "state"), [(8 << 30, "ok"), (100 << 20, "wrong"), (None, "absent")]
)
def test_memory(free: int | None, state: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(doctor, "available", lambda: free)
    assert only(doctor.memory()).state == state


def test_disk_and_folder(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert only(doctor.disk()).state == "ok"
    usage = type("usage", (), {"free": 1 << 20})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    room, folder = doctor.disk()
    assert (room.state, folder.state) == ("absent", "absent")
    assert str(tmp_path) in folder.found


def test_caches(monkeypatch: Patch, tmp_path: Path) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "later"))
    assert [finding.state for finding in doctor.caches()] == ["ok", "ok"]
    assert "made when needed" in doctor.caches()[0].found
    assert not (tmp_path / "later").exists()

    open_to_all = tmp_path / "later" / "diffusion-rt"
    open_to_all.mkdir(parents=True)
    open_to_all.chmod(0o777)
    ours, _hub = doctor.caches()
    assert (ours.state, ours.fix) == ("absent", f"chmod go-w {open_to_all}")

    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    _ours, hub = doctor.caches()
    assert hub.state == "absent"
    assert "HF_HOME" in hub.fix


def test_the_shipped_model_missing_or_changed(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "SHIPPED", tmp_path / "shapes-xl")
    finding = only(doctor.shipped_model())
    assert finding.state == "wrong"
    assert "shapes-xl" in finding.found
    assert finding.fix.startswith("install diffusion-rt again")


def test_a_check_that_breaks_is_a_finding() -> None:
    def bad_luck() -> Sequence[Finding]:
        raise ZeroDivisionError("odd machine")

    finding = only(examine([bad_luck]))
    assert finding.state == "wrong"
    assert finding.found == "cannot be checked: ZeroDivisionError: odd machine"


def test_the_report_is_safe_to_print_and_shows_each_fix() -> None:
    text = report([Finding("ok", "a", "1\x1b[2J"), Finding("wrong", "long name", "none", "do it")])
    assert text.splitlines() == [
        r"✓ a          1\x1b[2J",
        "✗ long name  none",
        "             → do it",
    ]


@pytest.mark.parametrize(("state", "status"), [("ok", 0), ("absent", 0), ("wrong", 1)])
def test_the_exit_status_says_whether_pictures_can_be_drawn(
    state: Any, status: int, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    check: Callable[[], Sequence[Finding]] = lambda: [Finding(state, "x", "y")]  # noqa: E731
    monkeypatch.setattr(doctor, "CHECKS", (check,))
    assert main(["doctor"]) == status
    assert ("cannot" in capsys.readouterr().out) is bool(status)
    assert main(["doctor", "--format", "json"]) == status
    answer = json.loads(capsys.readouterr().out)
    assert answer["able"] is not bool(status)
    assert answer["findings"] == [{"state": state, "subject": "x", "found": "y", "fix": ""}]


def test_this_machine_can_draw_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor"])
    assert status == 0, capsys.readouterr().out
