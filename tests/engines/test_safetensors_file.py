"""The safetensors gate: takes what the safetensors library writes, refuses what lies."""

import hashlib
import json
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.safetensors_file import MAX_HEADER, MAX_TENSORS, read_table

NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "U8": "<u1", "BOOL": "?"}
GOOD = {
    "b": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
    "a": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]},
    "none": {"dtype": "I64", "shape": [0, 4], "data_offsets": [16, 16]},
}


def written(path: Path, header: object, payload: int = 16, length: int | None = None) -> Path:
    """A file with this header (JSON, or its bytes) and so many bytes after it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + text + bytes(payload))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        read_table(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@given(
    arrays=st.dictionaries(
        st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20).filter(
            lambda name: name != "__metadata__"
        ),
        st.sampled_from([np.float16, np.float32, np.int64, np.uint8, np.bool_]).flatmap(
            lambda kind: numpy_st.arrays(kind, numpy_st.array_shapes(min_dims=0, max_side=5))
        ),
        max_size=6,
    ),
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)
def test_what_the_library_writes_is_read_back(
    arrays: dict[str, NDArray[Any]], metadata: dict[str, str]
) -> None:
    content = save(arrays, metadata or None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.safetensors")
        path.write_bytes(content)
        table = read_table(path)
        loaded = load_file(path)
    start = 8 + int.from_bytes(content[:8], "little")
    assert (table.size, table.sha256) == (
        len(content),
        hashlib.sha256(content[:start]).hexdigest(),
    )
    assert dict(table.metadata) == metadata
    assert table.tensors.keys() == loaded.keys()
    for name, tensor in table.tensors.items():
        raw = content[tensor.offset : tensor.offset + tensor.length]
        found = np.frombuffer(raw, NUMPY[tensor.dtype]).reshape(tensor.shape)
        np.testing.assert_array_equal(found, loaded[name])


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    header = dict(reversed(GOOD.items()))
    table = read_table(written(tmp_path / "a", header))
    start = table.size - 16
    assert [(name, t.offset, t.length) for name, t in table.tensors.items()] == [
        ("b", start, 12),
        ("a", start + 12, 4),
        ("none", start + 16, 0),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b": {**GOOD["b"], "data_offsets": [0, 13]}}, 'tensor "b": 13 bytes, F16 .* wants 12'),
        ({"b": {**GOOD["b"], "data_offsets": [-1, 11]}}, "two places from 0"),
        ({"b": {**GOOD["b"], "data_offsets": [12, 0]}}, "-12 bytes"),
        ({"b": {**GOOD["b"], "data_offsets": [0, 12, 13]}}, "two places from 0"),
        ({"b": {**GOOD["b"], "data_offsets": [0, 1 << 63]}}, "two places from 0"),
        ({"b": {**GOOD["b"], "data_offsets": [0.0, 12.0]}}, "two places from 0"),
        ({"b": {**GOOD["b"], "data_offsets": [False, 12]}}, "two places from 0"),
        ({"b": {**GOOD["b"], "dtype": "F17"}}, 'dtype "F17", wants one of BOOL'),
        ({"b": {**GOOD["b"], "dtype": ["F16"]}}, "dtype a list of 1"),
        ({"b": {**GOOD["b"], "dtype": "F64"}}, "12 bytes, F64 .* wants 48"),
        ({"b": {**GOOD["b"], "shape": [2, -3]}}, "shape wants"),
        ({"b": {**GOOD["b"], "shape": [1 << 62, 1 << 62]}}, "shape wants"),
        ({"b": {**GOOD["b"], "shape": [1 << 40, 1 << 40]}}, "12 bytes, F16"),
        ({"b": {**GOOD["b"], "shape": [2, 3, *[1] * 7]}}, "shape wants at most 8"),
        ({"b": {**GOOD["b"], "shape": "23"}}, "shape wants"),
        ({"b": {**GOOD["b"], "more": 1}}, "wants dtype, shape and data_offsets, no more"),
        ({"b": {"dtype": "F16", "shape": [2, 3]}}, "wants dtype, shape and data_offsets"),
        ({"b": None}, "wants dtype, shape and data_offsets"),
        ({"c": {**GOOD["a"], "data_offsets": [8, 12]}}, 'tensor "c" at 8, wants 12 .overlaps'),
        ({"c": {**GOOD["a"], "data_offsets": [17, 21]}}, 'tensor "c" at 17, wants 16 .leaves'),
        ({"c": {**GOOD["a"], "data_offsets": [16, 20]}}, "cut short"),
        (
            {"a": {**GOOD["none"], "data_offsets": [12, 12]}},
            "tensor .* at 16, wants 12 .leaves a gap",
        ),
        ({"": {**GOOD["none"]}}, "no valid name"),
        ({"a\nb": {**GOOD["none"]}}, r'tensor "a\\nb": no valid name'),
        ({"\ud800": {**GOOD["none"]}}, "no valid name"),
        ({"x" * 1001: {**GOOD["none"]}}, "no valid name"),
        ({"__metadata__": {"a": 1}}, "__metadata__ wants names with strings"),
        ({"__metadata__": []}, "__metadata__ wants names with strings"),
    ],
)
def test_a_lying_header_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = written(tmp_path / "a.safetensors", GOOD | change)
    with pytest.raises(BadInput, match=words):
        read_table(path)
    assert "\n" not in refusal(path)


def test_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    good = written(path, GOOD).read_bytes()
    for content, words in [
        (b"", "is empty"),
        (good[:7], "is no safetensors file (7 bytes)"),
        (good[:100], "cut short at 100 bytes, its header alone takes"),
        (good[:-1], "(cut short); download or export it again"),
        (good + b"\0", "(bytes after the last tensor)"),
        (struct.pack("<Q", 1 << 63) + good[8:], "a header of 9223372036854775808 bytes"),
        (struct.pack("<Q", 0) + good[8:], "header: no valid JSON"),
        (b"\0" * 4096, "is no safetensors file"),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
    ]:
        path.write_bytes(content)
        assert words in refusal(path)
    assert read_table(written(path, b'{"__metadata__": {}}   ', 0)).tensors == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}, "a": 1}', '"a" is there tw'),
        (b'{"a": {"shape": [], "shape": []}}', '"shape" is there twice'),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number too long"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"{'a': 1}", "no valid JSON"),
        (b"{} {}", "no valid JSON"),
    ],
)
def test_a_header_that_is_not_strict_json_is_refused(
    tmp_path: Path, text: bytes, words: str
) -> None:
    assert words in refusal(written(tmp_path / "a", text, 1))


def test_too_big_headers_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert f"at most {MAX_HEADER} are read" in refusal(
        written(path, b"{" + b" " * MAX_HEADER + b"}", 0)
    )
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    many = {str(i): empty for i in range(MAX_TENSORS + 1)}
    assert f"{MAX_TENSORS + 1} tensors, at most" in refusal(written(path, many, 0))
    del many["0"]
    assert len(read_table(written(path, many, 0)).tensors) == MAX_TENSORS


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_told_by_content(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"weight": [1.0] * 400}, protocol))
    assert "is a pickle, not safetensors; where you trust its source" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol))
    assert "a zip archive, as torch.save writes" in refusal(path)


@pytest.mark.parametrize("low", [2, 3, 4, 5])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path, low: int) -> None:
    length = low << 8 | 0x80
    path = written(tmp_path / "a", b"{}".ljust(length), 0)
    assert path.read_bytes()[:2] == bytes([0x80, low])
    assert read_table(path).tensors == {}


@settings(max_examples=250)
@given(data=st.data())
def test_no_damage_gets_through_but_to_names_and_numbers(data: st.DataObject) -> None:
    """After any few changes a file is refused as bad input, or still covers itself exactly."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a")
        content = bytearray(written(path, GOOD).read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, len(content) - 1))
            match data.draw(st.sampled_from(["set", "insert", "delete", "cut"])):
                case "set":
                    content[place] = data.draw(st.integers(0, 255))
                case "insert":
                    content.insert(place, data.draw(st.sampled_from(b'0129,:[]{}"aF-.')))
                case "delete" if len(content) > 1:
                    del content[place]
                case "cut":
                    content = content[: place + 1]
        path.write_bytes(content)
        try:
            table = read_table(path)
        except BadInput:
            return
    end = 8 + int.from_bytes(content[:8], "little")
    for tensor in table.tensors.values():
        assert tensor.offset == end
        end += tensor.length
    assert end == len(content)
