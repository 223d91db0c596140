"""The sub-command `build`: what it prints, what it keeps, what it says when it cannot."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.__main__ import main
from diffusion_rt.engines import cli
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native import build as native
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.kernels import driver
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.runtime.pipeline import SHIPPED
from support.simulated_build import files_in, in_place_of_tensorrt
from support.simulated_tensorrt.build import BUILDS, Builder
from support.simulated_tensorrt.enums import BuilderFlag
from support.simulated_tensorrt.rules import attach


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU for each command, as each opens its own and closes it."""

    def open_device(ordinal: int = 0) -> Simulator:
        simulator = Simulator()
        attach(simulator)
        return simulator

    with in_place_of_tensorrt():
        monkeypatch.setattr(driver, "open_device", open_device)
        yield


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(SHIPPED, tmp_path / "model", ignore=shutil.ignore_patterns("engines"))
    return tmp_path / "model"


def run(arguments: list[str | Path], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(["build", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_build_for_people(model: Path, device: None, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: list[str | Path] = [model, "--engine", "trt", "--buckets", "128x128,64x192"]
    status, out, err = run(arguments, capsys)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "][:-1] == list(GRAPHS)
    assert sum("built in" in line for line in lines) == 7
    assert sum(line.split()[0] in ("128x128", "64x192") for line in lines) == 6  # 3 x 2 profiles
    assert lines[-1].startswith(f"{model}/engines/trt/sm_90-simulator: ")


def test_a_build_for_machines(
    model: Path, device: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: list[str | Path] = [model, "--engine", "trt", "--format", "json", "--batch", "1:1:4"]
    status, out, err = run(arguments, capsys)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert [file["name"] for file in found["files"]] == [f"{graph}.plan" for graph in GRAPHS]
    for file in found["files"]:
        assert file["bytes"] > 1000
        assert file["seconds"] > 0
        assert not file["kept"]
    step = found["files"][4]
    assert list(step["scratch_bytes"]) == ["128x128"]  # the model's own size
    assert found["gpu"] == "simulator"
    assert found["peak_device"] is None or found["peak_device"] >= 0
    again = json.loads(run(arguments, capsys)[1])
    assert all(file["kept"] and file["seconds"] == 0 for file in again["files"])
    changed = json.loads(run([*arguments[:-1], "2"], capsys)[1])
    assert changed["files"][4]["reasons"] == ["batch 1:2:8, now 2:4:4"]
    forced = json.loads(run([*arguments[:-1], "2", "--force"], capsys)[1])
    assert not any(file["kept"] for file in forced["files"])


def test_why_something_is_built_anew_is_said(
    model: Path, device: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run([model, "--engine", "trt"], capsys)
    _, _, err = run([model, "--engine", "trt", "--tiling", "fast"], capsys)
    assert err.splitlines() == [f"{graph}: built anew (tiling none, now fast)" for graph in GRAPHS]


def test_flags_reach_the_builder(
    model: Path, device: None, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        *("--optimization-level", "2", "--workspace", "64M", "--auxiliary-streams", "0"),
        *("--hardware-compatibility", "same", "--vae-precision", "float32"),
        *("--stripped", "--version-compatible", "--no-tf32"),
    ]
    status, out, _ = run([model, "--engine", "trt", *flags], capsys)
    assert status == 0
    config = BUILDS[-1].config
    assert config.builder_optimization_level == 2
    assert config.max_aux_streams == 0
    assert list(config._limits.values()) == [64 << 20]
    assert config.get_flag(BuilderFlag.STRIP_PLAN)
    assert not config.get_flag(BuilderFlag.TF32)
    assert out.splitlines()[-1].startswith(f"{model}/engines/trt/sm_90: ")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--engine is missing"),
        (["--engine", "cuda"], "invalid choice"),
        (["--engine", "trt", "--bucket", "sdxl"], "did you mean --buckets?"),
        (["--engine", "trt", "--buckets", "1023x1024"], "try 1016 or 1024"),
        (["--engine", "trt", "--batch", "4:1:2"], "--batch: 4:1:2 is out of order"),
        (["--engine", "trt", "--batch", "1:1:100"], "wants sizes from 1 to 64"),
        (["--engine", "trt", "--chunks", "0"], "--chunks: "),
        (["--engine", "trt", "--optimization-level", "9"], "optimization level 9, wants 0 to 5"),
        (["--engine", "trt", "--workspace", "lots"], "--workspace: got"),
        (["--engine", "trt", "--workspace", "1"], "workspace 1, wants"),
        (["--engine", "trt", "--build-route=;"], "build route"),
        (["--engine", "trt", "--archs", "90"], "--archs is for --engine native"),
        (["--engine", "trt", "--pack-weights"], "--pack-weights is for --engine native"),
        (["--engine", "trt", "--libraries"], "--libraries is for --engine native"),
        (["--engine", "trt", "--no-overlap"], "--no-overlap is for --engine native"),
        (["--engine", "native", "--stripped"], "--stripped is for --engine trt"),
        (["--engine", "native", "--archs", "x"], "wants chips such as 80,90"),
        (
            ["--engine", "trt", "--attention", "plugin", "--precision", "float32"],
            "computes in float16",
        ),
    ],
)
def test_flags_that_are_wrong(
    flags: list[str], words: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run([model, *flags], capsys)
    assert status == 2
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (model / "engines").exists()


def test_ctrl_c_keeps_what_is_finished_and_says_so(
    model: Path, device: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal, while TensorRT is at work on the third engine in a thread of its own."""
    plain, begun = Builder.build_serialized_network, list[int]()

    def interrupted(self: Builder, network: Any, config: Any) -> Any:
        begun.append(1)
        if len(begun) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, network, config)

    monkeypatch.setattr(Builder, "build_serialized_network", interrupted)
    arguments: list[str | Path] = [model, "--engine", "trt"]
    status, out, err = run(arguments, capsys)
    assert (status, out) == (130, "")
    assert err.strip().splitlines()[-1] == "diffusion-rt: interrupted"
    (folder,) = (model / "engines" / "trt").iterdir()
    assert files_in(folder) == ["text_encoder.plan", "text_encoder_2.plan"]
    monkeypatch.setattr(Builder, "build_serialized_network", plain)
    status, out, err = run(arguments, capsys)
    assert status == 0
    assert [line.split()[3] for line in out.splitlines()[:2]] == ["kept,", "kept,"]


def test_a_folder_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run([tmp_path / "none", "--engine", "trt"], capsys)
    assert status == 2
    assert "no such folder" in err


def test_a_machine_without_tensorrt(model: Path) -> None:
    code = (
        "import sys; sys.modules['tensorrt'] = None\n"
        "from diffusion_rt.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-P", "-c", code, "build", str(model), "--engine", "trt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "TensorRT" in done.stderr
    assert "pip install 'diffusion-rt[trt]'" in done.stderr
    as_json = subprocess.run(
        [*command, "--format", "json"], capture_output=True, text=True, timeout=60, check=False
    )
    assert json.loads(as_json.stdout)["status"] == 2


def test_a_machine_without_a_gpu(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(ordinal: int = 0) -> Any:
        raise driver.NoDriver("no NVIDIA driver; install one")

    with in_place_of_tensorrt():
        monkeypatch.setattr(driver, "open_device", missing)
        status, _, err = run([model, "--engine", "trt"], capsys)
    assert status == 2
    assert "the GPU: no NVIDIA driver; install one" in err


def arguments(*flags: str) -> Any:
    from diffusion_rt.command import Parser

    parser = Parser(prog="x")
    cli.add_arguments(parser)
    return parser.read(["model", *flags])


def test_attention_in_float32_is_asked_for_and_refused() -> None:
    for flags, wanted in (
        ((), None),
        (("--float32-attention",), True),
        (("--no-float32-attention",), False),
    ):
        assert cli.options_of(arguments("--engine", "trt", *flags)).wide_attention is wanted


def test_help_has_examples_that_parse(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--help"]) == 0
    out, _ = capsys.readouterr()
    examples = [line.split("  (")[0].split() for line in out.splitlines() if "build ./sdxl" in line]
    assert len(examples) == 5
    for example in examples:
        found = arguments(*example[3:])
        if found.engine == "trt":
            cli.options_of(found)


def test_native_is_handed_over(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def build(folder: Any, **given: Any) -> list[native.Built]:
        calls.append(given)
        given["progress"]("compiling", 1, 1)
        return [native.Built("gemm", Path("x"), 5, 0.5, False)]

    monkeypatch.setattr(native, "build", build)
    flags = ["--engine", "native", "--archs", "80,90", "--batch", "1:2:4"]
    status, out, err = run([model, *flags, "--format", "json"], capsys)
    assert (status, err) == (0, "")
    assert json.loads(out)["files"] == [
        {"name": "gemm", "path": "x", "bytes": 5, "seconds": 0.5, "kept": False}
    ]
    (call,) = calls
    del call["progress"]
    assert call == {
        "buckets": [(128, 128)],
        "images": (2, 1, 4),
        "archs": (80, 90),
        "force": False,
        "libraries": False,
        "overlap": True,
        "pack_weights": False,
    }
    _, out, _ = run([model, *flags], capsys)
    assert out.splitlines()[0].split() == ["gemm", "0.00", "MB", "built", "in", "0.5", "s"]


def test_archs() -> None:
    assert cli.parse_archs("80, 90,80") == (80, 90)
    with pytest.raises(BadInput):
        cli.parse_archs("9" * 200)
