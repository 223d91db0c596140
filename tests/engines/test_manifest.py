"""The manifest: what is written reads back; what does not fit is refused by its exact place."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import Manifest, parse_manifest, read_manifest, write_manifest
from diffusion_rt.engines.typed_json import RelativePath, decode
from support.model_folders import make_model_folder

Fields = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "model").path


@pytest.fixture
def fields(folder: Path) -> Fields:
    found: Fields = json.loads((folder / "manifest.json").read_bytes())
    return found


def refusal(fields: object) -> str:
    with pytest.raises(BadInput) as caught:
        parse_manifest(json.dumps(fields).encode(), "manifest.json")
    message = str(caught.value)
    assert message.isprintable()
    assert message.isascii() or "…" in message
    return message


def test_what_is_written_reads_back(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert (tmp_path / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()
    assert set(manifest.graphs) == {graph for graph in manifest.graphs if "_" in graph}


def test_nothing_is_written_that_would_not_read_back(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    lists = dataclasses.replace(
        manifest,
        unet=dataclasses.replace(manifest.unet, channels=[32, 64]),  # type: ignore[arg-type]
    )
    for wrong, words in [
        (lists, "a list for a tuple"),
        (dataclasses.replace(manifest, name="a\nb"), "wants a short line"),
        (dataclasses.replace(manifest, files={}), "is not among the files"),
    ]:
        with pytest.raises(BadInput, match=words):
            write_manifest(tmp_path, wrong)
    assert list(tmp_path.iterdir()) == []


def _set(*path: str | int, to: Any) -> Callable[[Fields], None]:
    def change(fields: Any) -> None:
        for name in path[:-1]:
            fields = fields[name]
        fields[path[-1]] = to

    return change


def _drop(*path: str | int) -> Callable[[Fields], None]:
    def change(fields: Any) -> None:
        for name in path[:-1]:
            fields = fields[name]
        del fields[path[-1]]

    return change


STEP = ("graphs", "unet_step", "float32")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("vae", "factor", to="8"), 'vae.factor: got "8", wants an integer'),
        (_set("vae", "factor", to=8.0), "vae.factor: got 8.0, wants an integer"),
        (_set("vae", "factor", to=True), "vae.factor: got true, wants an integer"),
        (_set("vae", "factor", to=None), "vae.factor: got null, wants an integer"),
        (_set("vae", "factor", to=0), "vae.factor: got 0, wants 1 to 64"),
        (_set("vae", "factor", to=10**30), "vae.factor: got a huge integer, wants 1 to 64"),
        (_set("vae", "scaling_factor", to=0), "vae.scaling_factor: got 0, wants 1e-06 to"),
        (_set("vae", "scaling_factor", to=float("inf")), "Infinity is no JSON number"),
        (_set("vae", "shift_factor", to=float("nan")), "NaN is no JSON number"),
        (_set("vae", "latents_mean", to=[0.0]), "vae.latents_mean: 1 values, wants 4"),
        (_set("vae", "latents_std", to=[0, 0, "x", 0]), 'vae.latents_std[2]: got "x", wants a'),
        (_set("vae", "force_upcast", to=1), "vae.force_upcast: got 1, wants true or false"),
        (_drop("vae", "factor"), "vae.factor: missing"),
        (_set("vae", "factr", to=1), "vae.factr: unknown field; did you mean factor?"),
        (_set("vae", "a\nb", to=1), 'vae."a\\nb": unknown field'),
        (_set("vae", to=[]), "vae: got a list of 0, wants an object"),
        (_set("family", to="sd3"), 'family: got "sd3", wants "sdxl"'),
        (_set("name", to="a\u2028b"), 'name: got "a\\u2028b", wants a short line'),
        (_set("name", to="x" * 5000), "xx\\u2026"),
        (_set("schedule", "beta_end", to=2), "schedule.beta_end: got 2, wants 0.0 to 1.0"),
        (_set("schedule", "scheduler", to="a b"), "wants a name of letters and digits"),
        (_set("schedule", "prediction_type", to="x"), '"epsilon" or "v_prediction" or "sample"'),
        (_set("text_encoders", to=[]), "text_encoders: got none, wants one or two"),
        (_set("text_encoders", 1, "tokenizer", to="../x"), "text_encoders[1].tokenizer: got"),
        (_set("text_encoders", 1, "tokenizer", to="unet3"), 'no file in "unet3" is among the'),
        (_set("text_encoders", 0, "graph", to="vae"), "graphs.vae: missing"),
        (_set("unet", "heads", to=[1]), "unet.heads: wants one number for each of unet.channels"),
        (_drop("graphs", "unet_step"), "graphs.unet_step: missing"),
        (_set("graphs", "unet_step", to={}), "graphs.unet_step: no precision, wants float32"),
        (_set("graphs", "other", to={}), 'graphs: got "other", wants one of text_encoder,'),
        (_set("graphs", "unet_step", "int8", to={}), 'name: got "int8", wants "float32" or'),
        (_set(*STEP, "file", to="other.onnx"), '"other.onnx" is not among the files'),
        (_set(*STEP, "file", to="/etc/passwd"), "wants a path inside the folder"),
        (_set(*STEP, "inputs", 0, "shape", 0, to=-1), "inputs[0].shape[0]: got -1, wants 1 to"),
        (_set(*STEP, "inputs", 0, "shape", 0, to=1.5), "got 1.5, wants an integer or a string"),
        (_set(*STEP, "inputs", 0, "shape", 0, to="2*h"), 'shape[0]: got "2*h", wants a symbol'),
        (_set(*STEP, "inputs", 0, "dtype", to="int8"), '"float32" or "float16" or "int64"'),
        (_set("files", "../x", to={}), 'files: name: got "../x", wants a path inside'),
        (
            _set("files", "unet3", to={"size": -1, "sha256": "a" * 64}),
            'files["unet3"].size: got -1, wants 0 to',
        ),
        (_set("files", "unet3", to={"size": 1}), 'files["unet3"].sha256: missing'),
        (_set("files", "unet3", to={"size": 1, "sha256": "A" * 64}), "wants 64 hexa"),
        (_set("defaults", "steps", to=0), "defaults.steps: got 0, wants 1 to 1000"),
        (_drop("version"), "not a manifest (no version)"),
        (_set("version", to=0), "version: got 0, wants 1; export again"),
        (_set("version", to="1"), 'version: got "1", wants 1'),
        (_set("version", to=True), "version: got true, wants 1"),
        (
            _set("version", to=2),
            "written by a newer diffusion-rt (version 2; this one reads 1): upgrade, or export",
        ),
    ],
)
def test_a_wrong_field_is_named(
    fields: Fields, change: Callable[[Fields], None], words: str
) -> None:
    change(fields)
    message = refusal(fields)
    assert message.startswith("manifest.json: ")
    assert words in message
    assert "export" in message or "JSON" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no valid JSON"),
        (b"[]", "not a manifest"),
        (b"null", "not a manifest"),
        (b'{"version": 1, "version": 1}', '"version" is there twice'),
        (b'{"version": 1', "no valid JSON"),
        (b'{"version": "\xff"}', "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_what_is_no_manifest_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=re.escape(words)):
        parse_manifest(content, "manifest.json")


@pytest.mark.parametrize(
    "path",
    [
        *["", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/..", "a/./b", "../a", "a/../../b"],
        *["a\\b", "C:a", "a\0b", "a\n", "a b", "ä", "~", "a" * 301, "%2e%2e/a", "a/\u2025/b"],
    ],
)
def test_paths_that_could_leave_the_folder(path: str) -> None:
    with pytest.raises(BadInput, match="wants a path inside the folder"):
        decode(RelativePath, path, "files")


@given(st.from_regex(r"[A-Za-z0-9._/-]{1,40}", fullmatch=True))
def test_accepted_paths_stay_inside(path: str) -> None:
    try:
        decode(RelativePath, path, "files")
    except BadInput:
        return
    base = Path("/base")
    assert (base / path).parts[: len(base.parts)] == base.parts
    assert str(Path(path)) == path
    assert not {".", ".."} & set(path.split("/"))


@pytest.mark.parametrize("path", ["a", "..a", "a..", "...", ".a/b-1_2/c.onnx", "a/.../b"])
def test_harmless_paths_are_accepted(path: str) -> None:
    assert decode(RelativePath, path, "files") == path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


def _places(value: Any, place: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [place, *(found for key, item in inner for found in _places(item, (*place, key)))]


@settings(max_examples=150)
@given(data=st.data())
def test_any_value_in_any_place_is_bad_input_or_fits(data: st.DataObject, folder: Path) -> None:
    fields = json.loads((folder / "manifest.json").read_bytes())
    place = data.draw(st.sampled_from(_places(fields)))
    replacement = data.draw(JSON)
    if place:
        _set(*place, to=replacement)(fields)
    else:
        fields = replacement
    try:
        manifest = parse_manifest(json.dumps(fields).encode(), "manifest.json")
    except BadInput:
        return
    assert isinstance(manifest, Manifest)
