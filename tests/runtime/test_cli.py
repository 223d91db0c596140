"""`generate` from arguments to files: what it prints, where it writes, what it refuses early."""

import errno
import io
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self
from unittest.mock import ANY

import numpy as np
import pytest
from PIL import Image

from diffusion_rt.__main__ import main
from diffusion_rt.engines.errors import Fault
from diffusion_rt.runtime import output, picture, pipeline
from diffusion_rt.runtime.request import Request

SRC = Path(__file__).parents[2] / "src"


class StandIn:
    """A pipeline that records how it was opened and asked, and paints flat pictures."""

    opened: Mapping[str, Any]
    asked: Request
    folder = None

    @classmethod
    def open(cls, model: str | None, **options: Any) -> Self:
        StandIn.opened = {"model": model, **options}
        return cls()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def generate(
        self, request: Request, *, progress: Callable[[str, int, int], None]
    ) -> pipeline.Result:
        StandIn.asked = request
        for step in range(4):
            progress("denoise", step, 3)
        if request.prompt == "fail":
            raise Fault("the VAE made pixels that are not finite")
        seeds = tuple(request.seeds(first=1234))
        images = tuple(Image.new("RGB", (16, 8), (seed % 256, 0, 0)) for seed in seeds)
        for image in images:
            image.info = {"parameters": "red", "diffusion_rt": "{}"}
        latents = np.zeros((len(seeds), 4, 1, 2), np.float32)
        return pipeline.Result(
            images=images, latents=latents, seeds=seeds, request=request, seconds={}
        )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and the stand-in for the pipeline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "Pipeline", StandIn)
    StandIn.opened = {}
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pictures_are_numbered_and_named_on_standard_output(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "a red circle", "--seed", "7", "--images", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["picture-1.png", "picture-2.png"]
    assert "engine ort on cpu: " in err
    assert StandIn.asked == Request(prompt="a red circle", seed=7, num_images_per_prompt=2)
    assert main(["generate", "a red circle"]) == 0
    assert files(folder) == ["picture-1.png", "picture-2.png", "picture-3.png"]
    with Image.open("picture-2.png") as image:
        assert image.getpixel((0, 0)) == (8, 0, 0)
        assert isinstance(image, Image.Image)
        assert image.info["parameters"] == "red"


def test_engine_flags_reach_the_pipeline(folder: Path) -> None:
    argv = ["--model", "m", "--engine=ort", "--threads=3", "--provider=cpu", "--vae-tiling=on"]
    assert main(["generate", "x", *argv]) == 0
    assert StandIn.opened == {
        "progress": ANY,
        "size": None,
        "model": "m",
        "engine": "ort",
        "threads": 3,
        "provider": "cpu",
        "tiling": "on",
        "memory": None,
        "trust": False,
    }
    assert main(["generate", "x", "--trust"]) == 0
    assert StandIn.opened["trust"] is True
    assert main(["generate", "x", "--width", "64", "--height", "32"]) == 0
    assert StandIn.opened["size"] == (64, 32)


def test_json_is_one_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--format", "json", "--output", "é.png", "--seed=5,9", "--images=2"]
    assert main(["generate", "x", *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    answer = json.loads(out)
    assert answer["images"] == [
        {"file": "é-1.png", "seed": 5, "width": 16, "height": 8},
        {"file": "é-2.png", "seed": 9, "width": 16, "height": 8},
    ]
    assert answer["engine"].startswith("ort on cpu")


def test_json_tells_what_was_saved_before_a_failure(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = picture.save_png

    def fills(image: Image.Image, path: Path, **options: Any) -> None:
        if path.name == "a-3.png":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(image, path, **options)

    monkeypatch.setattr(picture, "save_png", fills)
    argv = ["--output", "a.png", "--seed=5", "--images=4"]
    assert main(["generate", "x", "--format", "json", *argv]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["error"] == "a-3.png: no space left on device"
    assert answer["status"] == 2
    saved = [(one["file"], one["seed"]) for one in answer["images"]]
    assert saved == [("a-1.png", 5), ("a-2.png", 6)]
    assert files(folder) == ["a-1.png", "a-2.png"]
    assert main(["generate", "x", "--overwrite", *argv]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines() == ["a-1.png", "a-2.png"]
    assert err.splitlines()[-1] == "diffusion-rt: error: a-3.png: no space left on device"


def test_metadata_can_be_stripped(folder: Path) -> None:
    assert main(["generate", "x", "--strip-metadata", "--output", "a.png"]) == 0
    with Image.open("a.png") as image:
        assert image.info == {}


@pytest.mark.parametrize(
    ("argv", "prompt"),
    [
        (["a red circle"], "a red circle"),
        ([""], ""),
        (["--prompt", ""], ""),
        (["--prompt=-"], "-"),
        (["--", "-x"], "-x"),
        (["--", "--format"], "--format"),
        (["- with a blank"], "- with a blank"),
        (["--prompt=--steps"], "--steps"),
        (["-"], "from\nstandard input: é"),
    ],
)
def test_any_prompt_can_be_given(
    argv: list[str], prompt: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO("from\nstandard input: é\r\n".encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["generate", *argv]) == 0
    assert StandIn.asked.prompt == prompt


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], 'the prompt is missing; give one, such as "a red circle"'),
        (["x", "--prompt", "y"], "the prompt is given twice"),
        (["a", "red", "circle"], "'red' is one argument too many"),
        (["\udcff"], "prompt holds a lone surrogate at character 0"),
        (["x", "--width", "1023"], "width=1023 is no multiple of 8; try 1016 or 1024"),
        (["x", "--steps", "0"], "steps=0 is out of range"),
        (["x", "--guidance-scale", "nan"], "guidance_scale=nan is out of range"),
        (["x", "--guidance-scal", "7"], "did you mean --guidance-scale?"),
        (["x", "--output", "no/a.png"], "there is no folder no; make it first"),
        (["x", "--output", "a.gif"], "ends in no .png"),
        (["x", "--output", "mine.png"], "mine.png exists"),
        (["x", "--output=many.png", "--images=3"], "many-2.png exists"),
        (["x", "--engine", "tensorrt"], "engine"),
        (["x", "--engine", "trt"], "engine trt"),
        (["x", "--engine", "native"], "native"),
        (["x", "--engine", "null"], "engine null computes nothing"),
        (["x", "--steps"], "--steps needs a value"),
        (["x", "--provider", "rocm"], "provider"),
        (["x", "--threads", "two"], "--threads: 'two' is no whole number"),
        (["x", "--vae-tiling", "maybe"], "--vae-tiling: invalid choice: 'maybe'"),
        (["x", "--sigmas", "karras", "--timesteps", "9,5"], "timesteps and sigmas are both given"),
    ],
)
def test_a_mistake_is_told_before_any_work(
    argv: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("mine.png", "many-2.png"):
        (folder / name).write_text("mine")
    assert main(["generate", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("diffusion-rt: error: ")
    assert len(err.splitlines()) == 1
    assert StandIn.opened == {}
    assert files(folder) == ["many-2.png", "mine.png"]
    assert (folder / "mine.png").read_text() == "mine"
    assert main(["generate", "--format=json", *argv]) == 2
    assert message in json.loads(capsys.readouterr().out)["error"]


def test_prompts_on_standard_input_are_bounded_and_utf8(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for content, message in ((b"a\xff", "not UTF-8 at byte 1"), (b"x" * (1 << 21), "longer than")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert main(["generate", "-"]) == 2
        assert message in capsys.readouterr().err


def test_a_failure_leaves_no_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "fail", "--output", "a.png"]) == 1
    assert capsys.readouterr().err.endswith("the VAE made pixels that are not finite\n")
    assert files(folder) == []


def test_overwriting_is_asked_for(folder: Path) -> None:
    (folder / "a.png").write_text("old")
    assert main(["generate", "x", "--output", "a.png"]) == 2
    assert main(["generate", "x", "--output", "a.png", "--overwrite"]) == 0
    with Image.open("a.png") as image:
        assert image.size == (16, 8)


def meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let somebody else's file appear while the picture is drawn."""
    draw = StandIn.generate

    def generate(self: StandIn, request: Request, **options: Any) -> pipeline.Result:
        path.write_text("theirs")
        return draw(self, request, **options)

    monkeypatch.setattr(StandIn, "generate", generate)


def test_a_file_that_appears_while_drawing_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meanwhile(folder / "a-2.png", monkeypatch)
    assert main(["generate", "x", "--output=a.png", "--images=3"]) == 2
    out, err = capsys.readouterr()
    assert out == "a-1.png\n"  # what was saved before is told
    assert "a-2.png exists and is kept; choose another name" in err
    assert (folder / "a-2.png").read_text() == "theirs"
    assert main(["generate", "x", "--output=a.png", "--images=3", "--overwrite"]) == 0
    assert (folder / "a-2.png").read_bytes().startswith(b"\x89PNG")


def test_two_runs_that_number_their_pictures_take_different_numbers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meant = output.names
    monkeypatch.setattr(picture, "names", lambda *asked: _late(meant(*asked)))

    def _late(names: Any) -> Any:
        for count, path in enumerate(names):
            if count == 0:
                path.write_text("theirs")
            yield path

    assert main(["generate", "x", "--output=new/", "--images=2", "--overwrite"]) == 0
    assert capsys.readouterr().out == "new/picture-2.png\nnew/picture-3.png\n"
    assert (folder / "new" / "picture-1.png").read_text() == "theirs"


@pytest.mark.parametrize("name", ["🧑‍🚀.png", "\udcff.png", f"{'d' * 200}/" * 6 + "a.png"])
def test_a_name_on_standard_output_can_be_used(
    name: str, folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    assert main(["generate", "x", "--output", name]) == 0
    out = capfdbinary.readouterr().out
    assert Path(os.fsdecode(out.removesuffix(b"\n"))).is_file()


def test_a_terminal_is_shown_no_control_characters(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["generate", "x", "--output", "a\x1b[2J.png"]) == 0
    assert capsys.readouterr().out == "a\\x1b[2J.png\n"


def test_closed_standard_input_is_no_prompt(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["generate", "-"]) == 2
    assert "standard input is closed" in capsys.readouterr().err


def start(folder: Path, *argv: str, **options: Any) -> "subprocess.Popen[str]":
    """The command in a process of its own, with the model that ships."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "diffusion_rt", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_picture_from_the_model_that_ships_and_again_from_its_metadata(tmp_path: Path) -> None:
    drawing = start(tmp_path, "generate", "a large red circle", "--steps=2", "--seed=3")
    out, err = drawing.communicate(timeout=120)
    assert drawing.returncode == 0, err
    assert out == "picture-1.png\n"
    told = start(tmp_path, "inspect", "picture-1.png", "--format=json")
    answer = json.loads(told.communicate(timeout=60)[0])
    again = start(tmp_path, *shlex.split(answer["command"])[1:], "--output=again.png")
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    with Image.open(tmp_path / "picture-1.png") as first, Image.open(tmp_path / "again.png") as one:
        assert first.tobytes() == one.tobytes()
        assert first.info == one.info


def test_a_full_standard_error_costs_no_picture(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        drawing = subprocess.run(
            [sys.executable, "-P", "-m", "diffusion_rt", "generate", "x", "--steps=1"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            timeout=120,
        )
    assert (drawing.returncode, drawing.stdout) == (0, "picture-1.png\n")
    assert files(tmp_path) == ["picture-1.png"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_half_file(number: signal.Signals, tmp_path: Path) -> None:
    drawing = start(tmp_path, "generate", "x", "--steps=900", "--width=256", "--output=a.png")
    assert drawing.stderr is not None
    assert drawing.stderr.readline().startswith("engine ort on cpu")  # the model is open
    timer = threading.Timer(1.0, drawing.send_signal, [number])
    timer.start()
    _, err = drawing.communicate(timeout=60)
    assert drawing.returncode == 128 + number, err
    assert "Traceback" not in err
    assert ("interrupted" in err) is (number == signal.SIGINT)
    assert files(tmp_path) == []


def test_a_disk_that_fills_while_drawing(tmp_path: Path) -> None:
    """The probe of 64 KiB fits, the pictures do not: a limit on file sizes stands for the disk."""
    drawing = start(
        tmp_path,
        *("generate", "x", "--steps=1", "--width=512", "--height=512", "--output=a.png"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)),
    )
    _, err = drawing.communicate(timeout=120)
    assert drawing.returncode == 2, err
    assert "a.png cannot be written: the file is bigger than this place allows" in err
    assert files(tmp_path) == []


def test_a_budget_of_memory_is_told_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = SimpleNamespace(told=lambda budget: f"1.0 GB of {budget} bytes, parts in turn")
    settled = SimpleNamespace(forecast=told)
    monkeypatch.setattr(StandIn, "settle", lambda self, request: settled, raising=False)
    argv = ["generate", "red", "--engine", "ort", "--provider", "cpu", "--memory", "8G"]
    assert main(argv) == 0
    assert StandIn.opened["memory"] == 8 << 30
    assert f"memory at most 1.0 GB of {8 << 30} bytes" in capsys.readouterr().err
