"""PNG files that say how they were drawn."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusion_rt import __version__
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.runtime import parameters
from diffusion_rt.runtime.picture import MODELS, describe, parse_metadata, read_metadata, save_png
from diffusion_rt.runtime.request import SIGMAS, Request
from diffusion_rt.runtime.samplers import registry, sampler_name
from support.model_folders import manifest_of
from support.requests import requests

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    path = tmp_path_factory.mktemp("model")
    return ModelFolder(path, manifest_of(path, {}, name="a model, ours"), "0123456789abcdef" * 4)


def picture(request: Request, model: ModelFolder, **options: Any) -> Image.Image:
    image = Image.fromarray(PIXELS)
    image.info.update(describe(request, model, "ort (cpu)", **options))
    return image


@settings(max_examples=80, deadline=None)
@given(request=requests())
def test_what_is_stored_is_read_back(
    request: Request, model: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "stored.png"
    image = picture(request, model, tile=64)
    save_png(image, path)
    found = read_metadata(path)
    assert found.request == request
    assert found.origin.model == "a model, ours"
    assert found.origin.model_sha256 == model.sha256
    assert (found.origin.engine, found.origin.tile) == ("ort (cpu)", 64)
    assert found.origin.program == f"diffusion-rt {__version__}"
    assert not found.origin.shipped
    with Image.open(path) as opened:
        assert (np.asarray(opened) == PIXELS).all()
        assert opened.info == image.info  # other readers find the same two texts


def test_a_shipped_model_is_known(model: ModelFolder) -> None:
    shipped = ModelFolder(MODELS / "shapes-xl", model.manifest, model.sha256)
    text = describe(Request(prompt="a"), shipped, "ort (cpu)")["diffusion_rt"]
    assert parse_metadata(text, "").origin.shipped


def test_metadata_can_be_left_out_and_nothing_else_gets_in(
    model: ModelFolder, tmp_path: Path
) -> None:
    path = tmp_path / "bare.png"
    image = picture(Request(prompt="secret"), model)
    image.info |= {"dpi": (300, 300), "icc_profile": b"profile", "Comment": "foreign", "gamma": 1.0}
    kept = dict(image.info)
    save_png(image, path)
    with Image.open(path) as opened:
        assert opened.info.keys() == {"parameters", "diffusion_rt"}
    save_png(image, path, strip_metadata=True)
    with Image.open(path) as opened:
        assert opened.info == {}
        assert (np.asarray(opened) == PIXELS).all()
    assert b"secret" not in path.read_bytes()
    assert image.info == kept
    with pytest.raises(BadInput, match=r"bare\.png does not say how it was drawn"):
        read_metadata(path)


def test_a_picture_is_written_whole_or_not_at_all(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.png"
    save_png(picture(Request(prompt="first"), model), path)
    monkeypatch.setattr(PngInfo, "add_itxt", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_png(picture(Request(prompt="second"), model), path)
    assert read_metadata(path).request.prompt == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.png"]
    with pytest.raises(BadInput):
        save_png(Image.fromarray(PIXELS), tmp_path / "nowhere" / "x.png")


def settings_of(line: str) -> dict[str, str]:
    """The pairs of the last line of AUTOMATIC1111's text."""
    pairs = re.findall(r'([A-Z][\w ]*): ("(?:[^"\\]|\\.)*"|[^,]*)(?:, |$)', line)
    return {name: json.loads(v) if v.startswith('"') else v for name, v in pairs}


def test_the_text_that_other_programs_read(model: ModelFolder) -> None:
    plain = Request(
        prompt="a cat\non a mat",
        num_inference_steps=20,
        guidance_scale=7.0,
        sampler="euler",
        seed=5,
        width=1216,
        height=832,
    )
    *lines, last = describe(plain, model, "ort (cpu)")["parameters"].split("\n")
    assert lines == ["a cat", "on a mat"]
    common = {
        "Steps": "20",
        "CFG scale": "7",
        "Seed": "5",
        "Size": "1216x832",
        "Model hash": "0123456789",
        "Model": "a model, ours",
        "Version": f"diffusion-rt {__version__}",
    }
    rest = {"Sampler": "Euler", "Schedule type": "Automatic", "RNG": "CPU"}
    assert settings_of(last) == common | rest
    full = Request(
        prompt="a cat",
        prompt_2='soft, "warm": light',
        negative_prompt="dark",
        negative_prompt_2="blur",
        num_inference_steps=20,
        guidance_scale=7.0,
        guidance_rescale=0.7,
        sampler="dpmpp-2m-sde",
        sigmas="karras",
        eta=0.5,
        seed=5,
        width=1216,
        height=832,
        rng="nv",
        clip_skip=1,
        emphasis="no-norm",
    )
    *lines, last = describe(full, model, "ort (cpu)")["parameters"].split("\n")
    assert lines == ["a cat", "Negative prompt: dark"]
    assert settings_of(last) == common | {
        "Sampler": "DPM++ 2M SDE",
        "Schedule type": "Karras",
        "CFG rescale": "0.7",
        "Eta": "0.5",
        "Clip skip": "3",
        "Prompt 2": 'soft, "warm": light',
        "Negative prompt 2": "blur",
        "RNG": "NV",
        "Emphasis": "No norm",
    }


def test_every_sampler_has_the_name_that_other_programs_know(model: ModelFolder) -> None:
    assert parameters.SAMPLERS.keys() == registry.SAMPLERS.keys()
    assert parameters.SCHEDULES.keys() == set(SIGMAS)
    for name in ("DPM++ 2M", "DPM++ 2M Karras", "Euler a SGM Uniform"):
        settled = Request(prompt="a", sampler=sampler_name(name))
        last = describe(settled, model, "null")["parameters"].split("\n")[-1]
        found = settings_of(last)
        family = {"Automatic": ""}.get(found["Schedule type"], found["Schedule type"])
        assert f"{found['Sampler']} {family}".strip() == name


def changed(model: ModelFolder, change: dict[str, Any], **request: Any) -> str:
    content = json.loads(describe(Request(prompt="a"), model, "ort (cpu)")["diffusion_rt"])
    content["request"] |= request
    return json.dumps(content | change)


@pytest.mark.parametrize(
    ("change", "request_change", "message"),
    [
        ({"version": 2}, {}, "x: version 2, this program reads 1"),
        ({"version": None}, {}, "x: version null"),
        ({"request": 7}, {}, "x: request: got 7, wants an object"),
        ({"request": {}}, {}, "x: prompt is NoneType; give text"),
        ({"engine": 7}, {}, "x: engine: got 7, wants a string"),
        ({"engine": "a\nb"}, {}, "x: engine: got"),
        ({"model_sha256": "0"}, {}, "x: model_sha256: got"),
        ({"more": 1}, {}, "x: more: unknown field"),
        ({}, {"steps": 1}, 'x: request: "steps" is no setting'),
        ({}, {"width": 1023}, "x: width=1023 is no multiple of 8"),
        ({}, {"width": [8]}, "x: width="),
        ({}, {"seed": [1, 2]}, "x: seed lists 2 values"),
        ({}, {"original_size": [1]}, "x: original_size="),
        ({}, {"sigmas": [[1]]}, "x: sigmas="),
        ({}, {"sigmas": {}}, "x: sigmas="),
        ({}, {"prompt": "\ud800"}, "x: prompt holds a lone surrogate"),
        ({}, {"emphasis": []}, "x: emphasis="),
    ],
)
def test_hostile_metadata_is_refused(
    change: dict[str, Any], request_change: dict[str, Any], message: str, model: ModelFolder
) -> None:
    with pytest.raises(BadInput, match=f"^{message}") as refused:
        parse_metadata(changed(model, change, **request_change), "x")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "NaN", "1" * 5000, "null", '"x"'])
def test_what_is_no_metadata_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"^x: "):
        parse_metadata(text, "x")
