"""Which engine is taken, why, and that nothing heavy is imported to find out."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.engines import choose as choose_module
from diffusion_rt.engines.choose import choose, open_backend
from diffusion_rt.engines.device import ready
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.null import NullBackend
from diffusion_rt.engines.trt.plan_file import write_plan
from diffusion_rt.kernels.compile import CompileError
from support.model_folders import make_model_folder
from support.plans import header_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_model(make_model_folder(tmp_path_factory.mktemp("model") / "model").path)


@pytest.mark.parametrize(
    ("engine", "provider", "words"),
    [
        ("trt", "cpu", "engine trt runs on a GPU; leave --provider out, or take ort"),
        ("native", "cpu", "engine native runs on a GPU; leave --provider out, or take ort"),
        ("ort", "host", "provider host is of engine native alone; got engine ort"),
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


@pytest.fixture
def gpu_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends that a machine has a driver, a compiler and no kernels, and all packages but one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def pretend(*, driver: bool = True, compiler: bool = True, without: str = "") -> None:
        def find() -> object:
            if not compiler:
                raise CompileError("no CUDA compiler; pip install x")
            return object()

        monkeypatch.setattr(ready, "find_compiler", find)
        (tmp_path / "driver").touch()
        monkeypatch.setattr(choose_module, "_DRIVER", (tmp_path / "driver",) * driver)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == without else object()
        )

    return pretend


def test_what_tensorrt_lacks_is_said_with_its_fix(
    folder: ModelFolder, gpu_machine: Callable[..., None]
) -> None:
    for settings, words in (
        ({"driver": False}, "no NVIDIA driver was found; install it"),
        ({"without": "tensorrt"}, "tensorrt is not installed; pip install 'diffusion-rt[trt]'"),
        (
            {"without": "cuda.bindings"},
            "cuda-bindings is not installed; pip install 'diffusion-rt[",
        ),
        ({"compiler": False}, "compiled on first use, and here is no CUDA compiler; pip install x"),
        ({}, f"no engine is built for small; run: diffusion-rt build {folder.path} --engine trt"),
    ):
        gpu_machine(**settings)
        with pytest.raises(BadInput) as caught:
            choose("trt", model=folder)
        assert str(caught.value).startswith("engine trt: ")
        assert words in str(caught.value)
        assert choose(model=folder).engine == "ort"


def test_the_native_engine(folder: ModelFolder, gpu_machine: Callable[..., None]) -> None:
    gpu_machine()
    assert str(choose("native", model=folder)) == "native on cuda: it was asked for"
    gpu_machine(without="cuda.bindings")
    with pytest.raises(BadInput, match=r"native: cuda-bindings is not .* 'diffusion-rt\[native\]'"):
        choose("native")
    gpu_machine(driver=False)
    with pytest.raises(BadInput, match="engine native: no NVIDIA driver was found; install it"):
        choose("native")
    assert str(choose("native", provider="host")) == "native on host: it was asked for"
    assert open_backend(folder, "native", provider="host").denoiser() is None
    with pytest.raises(BadInput, match="memory is a budget of engine native; engine ort has none"):
        open_backend(folder, "ort", memory=1 << 30)


def test_kernels_that_are_ready_need_no_compiler(
    gpu_machine: Callable[..., None], tmp_path: Path
) -> None:
    gpu_machine(compiler=False)
    with pytest.raises(BadInput, match=r"native: its kernels are .* no CUDA compiler; pip install"):
        choose("native")
    kernels = tmp_path / "cache" / "diffusion-rt" / "kernels"
    kernels.mkdir(parents=True)
    (kernels / "prepare.float16-sm_90-0").touch()
    assert choose("native").engine == "native"


def test_what_opening_compiles_is_heard_of(
    folder: ModelFolder, gpu_machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_machine()
    heard: list[tuple[str, int, int]] = []

    def open_native(model: ModelFolder, **options: Any) -> NullBackend:
        assert options["size"] == (64, 32)
        options["progress"](1, 2)
        return NullBackend(model, precision="float32")

    monkeypatch.setattr("diffusion_rt.engines.native.backend.open_native", open_native)
    open_backend(folder, "native", size=(64, 32), progress=lambda *told: heard.append(told))
    assert heard == [("compile", 1, 2)]


def test_auto_takes_tensorrt_where_engines_are_built(
    gpu_machine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = open_model(make_model_folder(tmp_path / "built").path)
    plans = folder.path / "engines" / "trt" / "sm_90"
    plans.mkdir(parents=True)
    write_plan(plans, header_of(b"plan"), b"plan")
    gpu_machine()
    assert str(choose(model=folder)) == "trt on cuda: TensorRT engines are built for this model"
    assert choose(model=folder, provider="cpu").engine == "ort"
    assert choose().engine == "ort", "no model, no engines"
    assert str(choose("trt", model=folder)) == "trt on cuda: it was asked for"
    with pytest.raises(BadInput, match="computes on the GPU; leave --threads out"):
        open_backend(folder, threads=2)
    gpu_machine(driver=False)
    assert choose(model=folder).engine == "ort"


def test_engines_that_cannot_be_used_are_not_passed_over_in_silence(
    gpu_machine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = open_model(make_model_folder(tmp_path / "built").path)
    plans = folder.path / "engines" / "trt" / "sm_90"
    plans.mkdir(parents=True)
    path = write_plan(plans, header_of(b"plan"), b"plan")
    path.write_bytes(path.read_bytes() + b"?")
    gpu_machine()
    with pytest.raises(BadInput) as caught:
        choose("trt", model=folder)
    for words in ("are damaged, or built by somebody else", "diffusion-rt doctor --model"):
        assert words in str(caught.value)
        assert words in str(choose(model=folder))
    assert str(choose(model=folder)).startswith("ort on cpu: a GPU driver was found")
    gpu_machine(without="tensorrt")
    assert "not trt: tensorrt is not installed; pip install" in str(choose(model=folder))


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


@pytest.mark.parametrize("home", ["closed", None])
def test_a_user_whose_home_cannot_be_used_draws_all_the_same(
    home: str | None, tmp_path: Path
) -> None:
    """In a child that is not root; None is a user without a home, as in a container."""
    if home is None and os.getuid():
        pytest.skip("only root can become a user that the system does not list")
    (tmp_path / "closed").mkdir(mode=0o000)
    code = (
        "import os\n"
        "from diffusion_rt.engines.choose import choose\n"
        "from diffusion_rt.engines.model_folder import open_model\n"
        "from diffusion_rt.engines.trt.ready import built\n"
        "from diffusion_rt.runtime import doctor, doctor_gpu\n"
        "model = open_model(doctor.SHIPPED)\n"
        "choose(model=model)\n"  # imports what it needs, which the child may not
        "os.getuid() or os.setuid(54321)\n"
        "print(built(model), choose(model=model).engine)\n"
        "findings = [*doctor.caches(), *doctor_gpu.kernel_cache()]\n"
        "print({finding.state for finding in findings})\n"
    )
    variables = {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    if home is not None:
        variables["HOME"] = str(tmp_path / home)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "False ort\n{'absent'}\n", done.stderr
