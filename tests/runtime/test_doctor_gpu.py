"""What the engines of a GPU need: each thing missing, and what to type about it."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_rt.__main__ import main
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.trt.buckets import parse_buckets
from diffusion_rt.engines.trt.build import build
from diffusion_rt.runtime import doctor_gpu
from diffusion_rt.runtime.finding import Finding
from diffusion_rt.runtime.nvidia import Device, Driver
from diffusion_rt.runtime.pipeline import SHIPPED
from support.tensorrt_bench import COVERAGE, PLAIN, tensorrt_on

Patch = pytest.MonkeyPatch


def versions(patch: Patch, **known: str) -> None:
    """Only these distributions are installed; - is spelt _."""
    table = {name.replace("_", "-"): version for name, version in known.items()}
    patch.setattr(doctor_gpu, "version_of", table.get)


def told(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    for finding in findings:
        assert "\n" not in finding.found + finding.fix
        assert finding.fix or finding.state == "ok"
    return [(finding.state, finding.subject) for finding in findings]


def test_nothing_is_there(monkeypatch: Patch) -> None:
    versions(monkeypatch)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert told(doctor_gpu.cuda_python()) == [("absent", "CUDA Python")]
    assert told(doctor_gpu.kernel_compiler()) == [("absent", "CUDA compiler")]
    assert told(doctor_gpu.tensorrt()) == [("absent", "TensorRT bindings")]
    for finding in (*doctor_gpu.cuda_python(), *doctor_gpu.kernel_compiler()):
        assert finding.fix == "for --engine trt and native: pip install 'diffusion-rt[native]'"
    assert "pip install 'diffusion-rt[trt]'" in doctor_gpu.tensorrt()[0].fix


def test_what_is_there_is_named(monkeypatch: Patch) -> None:
    versions(monkeypatch, cuda_bindings="13.5", nvidia_cuda_nvrtc="13.4")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert doctor_gpu.cuda_python() == [Finding("ok", "CUDA Python", "cuda-bindings 13.5")]
    (finding,) = doctor_gpu.kernel_compiler()
    assert finding.found == "nvidia-cuda-nvrtc 13.4, /usr/bin/nvcc"


@pytest.mark.parametrize(
    ("code", "state", "words"),
    [
        ("print('11.4.0.106')", "ok", "11.4.0.106, loads"),
        ("print('10.9.0')", "absent", "10.9.0, 11.0 or newer is wanted"),
        ("raise ImportError('libnvinfer.so.11: cannot open')", "absent", "libnvinfer.so.11"),
        ("import os; os.abort()", "absent", "it ended with status"),
        ("import time; time.sleep(9)", "absent", "took over 0.5 s"),
    ],
)
def test_bindings_and_libraries_are_told_apart(
    code: str, state: str, words: str, monkeypatch: Patch
) -> None:
    versions(monkeypatch, tensorrt_cu13_bindings="11.4.0.106")
    monkeypatch.setattr(doctor_gpu, "ASK", code)
    if "sleep" in code:
        monkeypatch.setattr(doctor_gpu, "TIMEOUT_SECONDS", 0.5)
    findings = doctor_gpu.tensorrt()
    assert told(findings) == [("ok", "TensorRT bindings"), (state, "TensorRT libraries")]
    assert words in findings[1].found


def test_bindings_without_the_package_they_belong_to(monkeypatch: Patch) -> None:
    """As pip leaves it where NVIDIA's index cannot be reached."""
    versions(monkeypatch, tensorrt_cu13_bindings="11.4.0.106")
    monkeypatch.setattr(doctor_gpu, "ASK", "import no_such_package_as_tensorrt")
    finding = doctor_gpu.tensorrt()[1]
    assert "No module named" in finding.found
    assert "NVIDIA's index" in finding.fix


def test_the_kernel_cache(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (finding,) = doctor_gpu.kernel_cache()
    assert "made when needed" in finding.found
    assert not list(tmp_path.iterdir())
    folder = tmp_path / "diffusion-rt" / "kernels"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "one").write_bytes(bytes(3 << 20))
    (folder / ".one.lock").touch()
    (finding,) = doctor_gpu.kernel_cache()
    assert finding.found == f"{folder}, kernels: 1, 3.0 MiB"
    folder.chmod(0o777)
    (finding,) = doctor_gpu.kernel_cache()
    assert (finding.state, finding.fix) == ("absent", f"chmod go-w {folder}")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: Patch) -> ModelFolder:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(SHIPPED, tmp_path / "m")
    return open_model(tmp_path / "m")


def test_the_engines_of_a_model(model: ModelFolder, monkeypatch: Patch) -> None:
    build_command = f"diffusion-rt build {model.path} --engine trt"
    findings = doctor_gpu.plans(model.path)
    assert told(findings) == [("ok", "model"), ("absent", "engines")]
    assert build_command in findings[1].fix
    with tensorrt_on("simulated") as gpu:
        graphs = ["unet_step", "unet_prompt", "vae_decoder"]
        build(model, COVERAGE, PLAIN, device=gpu.device, made_by="tests", graphs=graphs)
    _, there, lacking = doctor_gpu.plans(model.path)
    assert (there.state, there.subject) == ("ok", "engines sm_90-simulator")
    for words in ("3 plans", "for simulator", "TensorRT 11.4.0.106", "float32", "128x128, 96x160"):
        assert words in there.found
    assert "none of text_encoder, text_encoder_2, unet_timestep" in lacking.found
    assert lacking.fix.startswith(f"{build_command} --buckets 128x128,96x160 --batch 1:1:3 ")
    with monkeypatch.context() as other:
        other.setenv("XDG_CACHE_HOME", str(model.path.parent / "somebody else's"))
        foreign = doctor_gpu.plans(model.path)[1]
    assert "was not built by you here" in foreign.found
    assert "(and 2 more)" in foreign.found
    assert "diffusion-rt generate --trust; else diffusion-rt build" in foreign.fix
    (plan,) = model.path.glob("engines/trt/*/unet_step.plan")
    plan.write_bytes(plan.read_bytes()[:-1])
    damaged = doctor_gpu.plans(model.path)[2]
    assert "unet_step.plan cannot be used" in damaged.found
    assert damaged.fix == build_command


def test_engines_of_an_interrupted_build_in_two_folders(
    model: ModelFolder, monkeypatch: Patch
) -> None:
    """What was built first lies in the model's folder, which cannot be written any more."""
    more = replace(COVERAGE, buckets=parse_buckets("128x128,96x160,64x64"))
    graphs = ["unet_step", "vae_decoder"]
    with tensorrt_on("simulated") as gpu:
        build(model, COVERAGE, PLAIN, device=gpu.device, made_by="tests", graphs=graphs)
        with monkeypatch.context() as patch:
            own = model.path
            patch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(own))
            build(model, more, PLAIN, device=gpu.device, made_by="tests", graphs=graphs[:1])
    _, there, unfinished = doctor_gpu.plans(model.path)
    assert (there.state, there.subject) == ("ok", "engines sm_90-simulator")
    assert "2 plans" in there.found
    assert "128x128, 96x160, 64x64" in there.found
    assert "vae_decoder is not built for 64x64, as unet_step is" in unfinished.found
    assert "--buckets 128x128,96x160,64x64" in unfinished.fix


HERE = Driver("580.1", (13, 0), (Device("simulator", (9, 0), 1 << 30, None),))


def test_engines_are_held_against_this_machine(model: ModelFolder, monkeypatch: Patch) -> None:
    with tensorrt_on("simulated") as gpu:
        graphs = ["unet_step", "unet_prompt"]
        build(model, COVERAGE, PLAIN, device=gpu.device, made_by="tests", graphs=graphs)
    monkeypatch.setattr(doctor_gpu, "ASK", "print('11.4.0.106')")
    other = Driver("580.1", (13, 0), (Device("NVIDIA A10", (8, 6), 24 << 30, None),))
    for driver, state, words in (
        (HERE, "ok", "2 plans"),
        (other, "absent", "for simulator (sm_90, hardware compatibility none), this GPU is NVIDIA"),
        (None, "ok", "for simulator"),
    ):
        monkeypatch.setattr(doctor_gpu, "ask_driver", lambda driver=driver: driver)
        _, engines, *_more = doctor_gpu.plans(model.path)
        assert engines.state == state
        assert words in engines.found
    monkeypatch.setattr(doctor_gpu, "ask_driver", lambda: HERE)
    monkeypatch.setattr(doctor_gpu, "ASK", "print('11.5.0.1')")
    _, engines = doctor_gpu.plans(model.path)
    assert "for TensorRT 11.4.0.106, installed is 11.5.0.1" in engines.found
    assert "(and 1 more)" in engines.found


def test_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finding,) = doctor_gpu.plans(tmp_path / "none")
    assert (finding.state, finding.subject) == ("absent", "model")
    assert main(["doctor", "--format", "json", "--model", str(tmp_path / "none")]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert findings[-1]["subject"] == "model"
    assert "tensorrt" not in sys.modules
