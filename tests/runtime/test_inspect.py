"""What inspect says of pictures and of model folders."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusion_rt.command import plain
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.runtime.inspect import inspect, report
from diffusion_rt.runtime.picture import describe, read_metadata, save_png
from diffusion_rt.runtime.redraw import command_of
from diffusion_rt.runtime.request import Request
from support.model_folders import WEIGHTS, make_model_folder
from support.requests import requests

BLANK = Image.fromarray(np.zeros((16, 24, 3), np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    path = tmp_path_factory.mktemp("models") / "small"
    make_model_folder(path)
    return open_model(path)


def draw(request: Request, folder: ModelFolder, path: Path) -> Path:
    image = BLANK.copy()
    image.info.update(describe(request, folder, "ort (cpu)", tile=32))
    save_png(image, path)
    return path


@settings(max_examples=40, deadline=None)
@given(request=requests())
def test_a_picture(
    request: Request, folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = draw(request, folder, tmp_path_factory.getbasetemp() / "inspected.png")
    found = inspect(path)
    assert json.loads(json.dumps(found)) == found
    assert (found["kind"], found["width"], found["height"]) == ("picture", 24, 16)
    assert found["request"]["prompt"] == request.prompt
    assert found["model_sha256"] == folder.sha256
    assert found["command"] == command_of(read_metadata(path))
    text = report(found)
    assert text.split("\n")[-1] == found["command"]
    assert all(plain(c) == c for c in text if c != "\n")


def test_a_picture_as_text(folder: ModelFolder, tmp_path: Path) -> None:
    request = Request(prompt="a cat", seed=7, sigmas=(1.5, 0.0), original_size=(8, 16))
    path = draw(request, folder, tmp_path / "x.png")
    lines = report(inspect(path)).split("\n")
    assert lines[1:] == [
        "size           24x16",
        "program        diffusion-rt 0.1.0",
        "engine         ort (cpu)",
        "model          small",
        "prompt         a cat",
        "sigmas         1.5, 0.0",
        "seed           7",
        "original_size  8, 16",
        "drawn again by:",
        "diffusion-rt generate 'a cat' --model small --sigmas 1.5,0.0 --seed 7 "
        "--original-size 8x16 --vae-tiling on",
    ]


def test_a_picture_that_no_command_draws(folder: ModelFolder, tmp_path: Path) -> None:
    found = inspect(draw(Request(prompt="a\0b"), folder, tmp_path / "x.png"))
    assert found["command"] is None
    assert "NUL" in report(found).split("\n")[-1]


def test_a_picture_by_another_program(tmp_path: Path) -> None:
    stored = PngInfo()
    stored.add_text("parameters", "a cat\x1b[2J\nSteps: 20")
    BLANK.save(tmp_path / "theirs.png", pnginfo=stored)
    found = inspect(tmp_path / "theirs.png")
    assert found["parameters"] == "a cat\x1b[2J\nSteps: 20"
    assert report(found).split("\n")[-2:] == [r"  a cat\x1b[2J", "  Steps: 20"]
    BLANK.save(tmp_path / "bare.png")
    with pytest.raises(BadInput, match="does not say how it was drawn"):
        inspect(tmp_path / "bare.png")


def test_a_model_folder(folder: ModelFolder) -> None:
    seen: list[tuple[str, int, int]] = []
    found = inspect(folder.path, verify=True, progress=lambda *step: seen.append(step))
    assert json.loads(json.dumps(found)) == found
    size = sum(record.size for record in folder.manifest.files.values())
    assert seen[-1] == ("verify", size, size)
    assert sorted(done for _, done, _ in seen) == [done for _, done, _ in seen]
    assert found["bytes"] == size
    assert found["sha256"] == folder.sha256
    assert found["checked"] == "every byte"
    assert inspect(folder.path)["checked"].startswith("sizes")
    assert tuple(found["graphs"]) == GRAPHS
    step = found["graphs"]["unet_step"]["float16"]
    assert step["inputs"] == ["x float16 [batch, tokens, 8]"]
    assert step["bytes"] == (folder.path / step["file"]).stat().st_size
    (weights,) = found["weights"]
    assert weights["file"] == WEIGHTS
    assert weights["values"] == {"F32": 8 * 16 + 16}
    text = report(found)
    assert "unet_step float16: unet_step.float16.onnx" in text
    assert "  out y float16 [batch, tokens, 16]" in text
    assert "144 F32" in text


def test_what_is_neither_is_refused(folder: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        inspect(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="not a model folder"):
        inspect(tmp_path)
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(BadInput, match="is no PNG file"):
        inspect(tmp_path / "x.png")
    with pytest.raises(BadInput, match="no model folder; --verify is for"):
        inspect(tmp_path / "x.png", verify=True)


def test_a_changed_weight_is_found_by_verify_alone(tmp_path: Path) -> None:
    path = tmp_path / "small"
    make_model_folder(path)
    with (path / WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    inspect(path)
    with pytest.raises(BadInput, match="was changed since it was exported"):
        inspect(path, verify=True)
