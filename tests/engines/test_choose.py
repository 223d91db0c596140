"""Which engine is taken, why, and that nothing heavy is imported to find out."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_rt.engines import choose as choose_module
from diffusion_rt.engines.choose import choose, open_backend
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from support.model_folders import make_model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_model(make_model_folder(tmp_path_factory.mktemp("model") / "model").path)


@pytest.mark.parametrize(
    ("engine", "provider", "words"),
    [
        ("trt", None, "engine trt: this version has no TensorRT engine yet; use ort or auto"),
        ("native", None, "engine native: this version has no native engine yet; use ort or auto"),
        ("nativ", None, 'engine "nativ" is unknown, did you mean native? wants one of auto, ort'),
        ("ORT\n", None, 'engine "ORT\\n" is unknown; wants one of auto, ort, trt,'),
        ("ort", "gpu", 'provider "gpu" is unknown, did you mean cpu? wants one of cpu, cuda'),
        ("ort", "cudda", 'provider "cudda" is unknown, did you mean cuda?'),
        ("null", "cuda", "engine null runs on no device"),
    ],
)
def test_what_cannot_be_had_says_what_can(engine: str, provider: str | None, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        choose(engine, provider=provider)
    assert words in str(caught.value)


@pytest.mark.parametrize("driver", [True, False])
def test_auto_says_which_and_why(
    driver: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose_module, "_DRIVER", (tmp_path / "driver",))
    if driver:
        (tmp_path / "driver").touch()
    assert str(choose()) == "ort on cpu: " + (
        "a GPU driver was found, but the GPU is used only if asked for"
        if driver
        else "no GPU driver was found"
    )
    assert str(choose("ort", provider="cuda")) == "ort on cuda: it was asked for"
    assert str(choose("ort")) == "ort on cpu: it was asked for"
    assert str(choose("null")) == "null on cpu: it was asked for"


def test_without_onnxruntime_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        BadInput, match=r"onnxruntime is not installed; pip install 'diffusion-rt\["
    ):
        choose()
    assert choose("null").engine == "null"


def test_a_broken_onnxruntime_is_bad_input(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    with pytest.raises(BadInput, match=r"cannot be imported .*; pip install 'diffusion-rt\[cpu\]'"):
        open_backend(folder)


def test_the_backend_is_the_one_chosen(folder: ModelFolder) -> None:
    assert open_backend(folder).name == "ort (cpu)"
    assert open_backend(folder, "null", precision="float16").load("unet_step").inputs[
        "x"
    ].dtype == ("float16")
    assert open_backend(folder, threads=1).load("unet_step").inputs["x"].dtype == "float32"


def test_choosing_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.path[:] = sys.argv[1].split(':')\n"
        "from diffusion_rt.engines.choose import choose, open_backend\n"
        "from diffusion_rt.engines.model_folder import open_model\n"
        "choose()\n"
        "heavy = {'torch', 'tensorrt', 'onnxruntime', 'onnx', 'triton', 'diffusers'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, ":".join(sys.path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
