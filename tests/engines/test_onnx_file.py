"""The ONNX gate: sees all that the onnx package sees, and refuses what could leave the folder."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import FileRecord
from diffusion_rt.engines.onnx_file import ExternalTensor, check_external, read_onnx
from support.model_folders import model_of, set_external

FILES = {
    "unet/w.safetensors": FileRecord(size=1000, sha256="0" * 64),
    "w.bin": FileRecord(size=100, sha256="0" * 64),
}
GOOD = {"location": "unet/w.safetensors", "offset": 904, "length": 96}


def external(name: str = "w", /, **entries: object) -> TensorProto:
    """A float32 tensor [4, 6], outside the file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4, 6])
    set_external(tensor, **(entries or GOOD))
    return tensor


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [tensor.name], value=tensor)


def inside(nodes: list[onnx.NodeProto], initializers: list[TensorProto]) -> onnx.NodeProto:
    """A node with an inner graph that holds these."""
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    branch = helper.make_graph(nodes, "branch", [], [y], initializers)
    return helper.make_node("If", ["c"], ["y"], then_branch=branch)


def nested(depth: int, tensor: TensorProto) -> onnx.NodeProto:
    node = constant(tensor)
    for _ in range(depth):
        node = inside([node], [])
    return node


Place = Callable[[TensorProto], onnx.ModelProto]
PLACES: dict[str, Place] = {
    "initializer": lambda t: model_of([], [t], [], []),
    "constant": lambda t: model_of([constant(t)], [], [], []),
    "initializer of a branch": lambda t: model_of([inside([], [t])], [], [], []),
    "constant of a branch": lambda t: model_of([inside([constant(t)], [])], [], [], []),
    "list of tensors": lambda t: model_of(
        [helper.make_node("Any", [], ["y"], tensors=[t, t])], [], [], []
    ),
    "deep inside": lambda t: model_of([nested(10, t)], [], [], []),
}


def gate(model: onnx.ModelProto, file: str = "g.onnx") -> list[ExternalTensor]:
    found = read_onnx(model.SerializeToString(), file)
    check_external(found, file, FILES)
    return found.external


def refusal(model: onnx.ModelProto, file: str = "g.onnx") -> str:
    with pytest.raises(BadInput) as caught:
        gate(model, file)
    message = str(caught.value)
    assert message.startswith("g.onnx: ")
    assert message.isprintable()
    return message


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_wherever_it_stands(place: str) -> None:
    found = gate(PLACES[place](external()))
    assert set(found) == {ExternalTensor("w", "float32", (4, 6), "unet/w.safetensors", 904, 96)}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "../unet/w.safetensors"}, 'in "../unet/w.safetensors", wants a file of'),
        ({"location": "unet/../../w.bin"}, "wants a file of the manifest"),
        ({"location": "unet/../w.bin"}, "wants a file of the manifest"),
        ({"location": "/etc/passwd"}, 'in "/etc/passwd", wants a file of the manifest'),
        ({"location": "/unet/w.safetensors"}, "wants a file of the manifest"),
        ({"location": "unet\\w.safetensors"}, "wants a file of the manifest"),
        ({"location": "other.bin"}, "wants a file of the manifest"),
        ({"location": "w.bin\0"}, "wants a file of the manifest"),
        ({"location": ""}, "wants a file of the manifest"),
        ({"offset": 905}, "at 905 + 96 bytes, unet/w.safetensors has 1000"),
        ({"offset": 1 << 45}, "bytes, unet/w.safetensors has 1000"),
        ({"offset": 1 << 63}, "whole numbers"),
        ({"offset": -1}, "whole numbers"),
        ({"offset": "0x10"}, "whole numbers"),
        ({"offset": " 1"}, "whole numbers"),
        ({"offset": "١"}, "whole numbers"),
        ({"length": 95}, "95 bytes, its shape wants 96"),
        ({"length": 97}, "97 bytes, its shape wants 96"),
        ({"length": -96}, "whole numbers"),
        ({"length": ""}, "whole numbers"),
        ({"checksum": "0"}, 'external data with "checksum"'),
        ({"basepath": "/etc"}, 'external data with "basepath"'),
    ],
)
def test_what_leaves_the_folder_or_the_file_is_refused(
    place: str, entries: dict[str, object], words: str
) -> None:
    assert words in refusal(PLACES[place](external(**(GOOD | entries))))


def test_locations_are_relative_to_the_onnx_file() -> None:
    inner = external(location="w.safetensors", offset=0, length=96)
    model = PLACES["initializer"](inner)
    found = read_onnx(model.SerializeToString(), "unet/g.onnx")
    check_external(found, "unet/g.onnx", FILES)
    assert "wants a file of the manifest" in refusal(model)


def test_no_entry_comes_twice_and_length_must_be_there() -> None:
    twice = external()
    entry = twice.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    assert 'external data with "location"' in refusal(PLACES["initializer"](twice))
    short = external(location="w.bin", offset="0")
    assert "whole numbers" in refusal(PLACES["initializer"](short))
    no_offset = external(location="w.bin", length="96")
    assert gate(PLACES["initializer"](no_offset))[0].offset == 0


def _sparse_initializer(model: onnx.ModelProto) -> None:
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def _sparse_attribute(model: onnx.ModelProto) -> None:
    _sparse_initializer(model)
    node = helper.make_node("Constant", [], ["y"], sparse_value=model.graph.sparse_initializer[0])
    del model.graph.sparse_initializer[:]
    model.graph.node.append(node)


def _training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def _function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="mine")


def _domain(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("F", [], ["y"], domain="com.microsoft"))


def _domain_inside(model: onnx.ModelProto) -> None:
    model.graph.node.append(inside([helper.make_node("F", [], ["y"], domain="mine")], []))


def _opset(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _opset_twice(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("ai.onnx", 22))


def _no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def _no_graph(model: onnx.ModelProto) -> None:
    model.ClearField("graph")


def _ir_version(model: onnx.ModelProto) -> None:
    model.ir_version = 99


def _overload(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("F", [], ["y"], overload="x"))


def _reference(model: onnx.ModelProto) -> None:
    node = helper.make_node("F", [], ["y"])
    node.attribute.add(name="a", ref_attr_name="b")
    model.graph.node.append(node)


def _string_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(
        TensorProto(name="s", data_type=TensorProto.STRING, dims=[1], string_data=[b"x"])
    )


def _int4_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="t", data_type=TensorProto.INT4, dims=[2], raw_data=b"x")


def _both_places(model: onnx.ModelProto) -> None:
    tensor = external()
    tensor.raw_data = bytes(96)
    model.graph.initializer.append(tensor)


def _unused_entries(model: onnx.ModelProto) -> None:
    tensor = external()
    tensor.data_location = TensorProto.DEFAULT
    model.graph.initializer.append(tensor)


def _short_raw(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="t", data_type=1, dims=[2, 2], raw_data=bytes(15))


def _huge_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="t", data_type=1, dims=[1 << 40, 1 << 40])


def _no_elements(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="t", data_type=1, dims=[1 << 30])


def _negative_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="t", data_type=1, dims=[-1, -4])


def _many_dimensions(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="t", data_type=1, dims=[1] * 9)


def _deep(model: onnx.ModelProto) -> None:
    model.graph.node.append(nested(30, external()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_sparse_initializer, "a graph has field 15 (type 2), not known"),
        (_sparse_attribute, "an attribute has field 22 (type 2), not known"),
        (_training, "the model has field 20 (type 2), not known"),
        (_function, "the model has field 25 (type 2), not known"),
        (_domain, 'operators of domain "com.microsoft", wants standard ONNX only'),
        (_domain_inside, 'operators of domain "mine", wants standard ONNX only'),
        (_opset, 'operators of domain "com.microsoft", wants standard ONNX only'),
        (_opset_twice, "opset 22, wants one version"),
        (_no_opset, "no version of the standard operators"),
        (_no_graph, "no ONNX graph in it"),
        (_ir_version, "IR version 99, wants 3 to"),
        (_overload, "a node has field 8 (type 2), not known"),
        (_reference, "an attribute has field 21 (type 2), not known"),
        (_string_tensor, "a tensor has field 6 (type 2), not known"),
        (_int4_tensor, 'tensor "t": data type 22 is not known'),
        (_both_places, 'tensor "w": data both in the file and outside'),
        (_unused_entries, 'tensor "w": external data that is not used'),
        (_short_raw, 'tensor "t": 15 bytes, its shape wants 16'),
        (_huge_shape, 'tensor "t": a shape of'),
        (_no_elements, 'tensor "t": fewer elements than its shape wants'),
        (_negative_shape, 'tensor "t": a shape of'),
        (_many_dimensions, "over 8 dimensions"),
        (_deep, "graphs within graphs, over 16 deep"),
    ],
)
def test_what_the_export_never_writes_is_refused(
    change: Callable[[onnx.ModelProto], None], words: str
) -> None:
    model = model_of([], [], [], [])
    gate(model)
    change(model)
    assert words in refusal(model)


def _field(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (_field(9, b"a") + _field(9, b"b"), "a tensor has field 9 twice"),
        (b"\x10\x01\x10\x0b", "a tensor has field 2 twice"),
        (b"\x0b\x0c", "a tensor has field 1 (type 3), not known"),
        (b"\x12\x01\x01", "a tensor has field 2 (type 2), not known"),
        (b"\x70\x02", "data_location 2, wants 0 or 1"),
        (b"\x10" + b"\x80" * 11, "a number is cut short or too long"),
        (b"\x10" + b"\xff" * 9 + b"\x02", "a number is cut short or too long"),
        (b"\x4a\x7f", "a tensor is cut short"),
        (b"\x4a", "a number is cut short"),
        (b"\x10", "a number is cut short"),
        (b"\x25\0\0\0", "a tensor is cut short"),
        (b"\x80", "a number is cut short"),
        (b"\xf8\xff\xff\xff\xff\xff\xff\xff\xff\x01", "not known"),
    ],
)
def test_bytes_that_two_readers_could_read_apart_are_refused(tensor: bytes, words: str) -> None:
    model = b"\x08\x0a" + _field(8, b"\x10\x17") + _field(7, _field(5, tensor))
    with pytest.raises(BadInput) as caught:
        read_onnx(model, "g.onnx")
    assert words in str(caught.value)


def test_a_tag_in_its_long_spelling_means_the_same() -> None:
    short = external().SerializeToString()
    long = short.replace(b"\x70\x01", b"\xf0\x80\x00\x01")
    assert long != short
    model = model_of([], [external()], [], [])
    content = b"\x08\x0a" + _field(8, b"\x10\x17") + _field(7, _field(5, long))
    assert read_onnx(content, "g").external == gate(model)


def test_packed_dimensions_are_read_like_others() -> None:
    packed = _field(1, b"\x04\x06") + external().SerializeToString().replace(
        b"\x08\x04\x08\x06", b""
    )
    content = b"\x08\x0a" + _field(8, b"\x10\x17") + _field(7, _field(5, packed))
    assert read_onnx(content, "g").external[0].shape == (4, 6)


def rich_model() -> onnx.ModelProto:
    """One of everything that is allowed."""
    nodes = [
        constant(external("c", **(GOOD | {"offset": 8}))),
        nested(2, external("n")),
        helper.make_node("Resize", ["x"], ["r"], mode="linear", axes=[2, 3], cubic_coeff_a=-0.5),
        helper.make_node("Any", ["r"], ["z"], floats=[1.0, 2.0], strings=["a", "b"]),
    ]
    nodes[2].doc_string = "why"
    entry = nodes[2].metadata_props.add()
    entry.key, entry.value = "namespace", "unet"
    kinds = [np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_, np.float64]
    inner = [numpy_helper.from_array(np.ones((2, 3), kind), kind.__name__) for kind in kinds]
    inner.append(helper.make_tensor("listed", TensorProto.INT64, [3], [1, -2, 3]))
    inner.append(helper.make_tensor("half", TensorProto.FLOAT16, [2], [1.0, 2.0]))
    inner.append(numpy_helper.from_array(np.array(2, np.float32), "scalar"))
    inner.append(numpy_helper.from_array(np.zeros((0, 2), np.float32), "empty"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, None])
    model = model_of(nodes, [external(), *inner], [x], [])
    model.producer_name, model.graph.doc_string = "test", "text"
    return model


def listed_by_onnx(content: bytes) -> list[tuple[str, ...]] | None:
    """Name, location and offset of external tensors, by the onnx package; None: unreadable."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        return None
    found: list[tuple[str, ...]] = []
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        tensors = list(graph.initializer)
        for node in graph.node:
            for attribute in node.attribute:
                tensors += [*attribute.tensors] + [attribute.t] * attribute.HasField("t")
                graphs += [*attribute.graphs] + [attribute.g] * attribute.HasField("g")
        for tensor in tensors:
            if tensor.data_location == TensorProto.EXTERNAL:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                place = entries.get("location", ""), entries.get("offset", "0")
                found.append(tuple(map(_text, (tensor.name, *place))))
    return sorted(found)


def _text(value: str | bytes) -> str:
    """Protocol buffers give bytes for a string that is not UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def listed_by_us(content: bytes) -> list[tuple[str, ...]]:
    found = read_onnx(content, "g.onnx").external
    return sorted((t.name, t.location, str(t.offset)) for t in found)


def test_the_rich_model_is_read_as_the_onnx_package_reads_it() -> None:
    content = rich_model().SerializeToString()
    assert listed_by_us(content) == listed_by_onnx(content)
    assert len(listed_by_us(content)) == 3
    assert read_onnx(content, "g").nodes == 6
    assert read_onnx(content, "g").opset == 23


def test_no_damage_shows_onnx_what_the_gate_did_not_see() -> None:
    """What the gate lets pass, the onnx package reads alike; the rest is refused, never a crash."""
    good = rich_model().SerializeToString()
    draw = random.Random(3)
    passed = refused = 0
    for _ in range(3000):
        content = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(content))
            match draw.randrange(4):
                case 0:
                    content[place] = draw.randrange(256)
                case 1:
                    content[place] ^= 1 << draw.randrange(8)
                case 2:
                    start = draw.randrange(len(content))
                    content[place:place] = content[start : start + draw.randint(1, 40)]
                case 3:
                    del content[place : place + draw.randint(1, 40)]
        damaged = bytes(content)
        try:
            ours = listed_by_us(damaged)
        except BadInput:
            refused += 1
            continue
        theirs = listed_by_onnx(damaged)
        if theirs is not None:  # it reads more of the file than the gate does
            assert ours == sorted((n, place, str(int(offset))) for n, place, offset in theirs)
            passed += 1
    assert passed > 100
    assert refused > 1000


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_garbage_is_bad_input(content: bytes) -> None:
    with pytest.raises(BadInput):
        read_onnx(content, "g.onnx")


def test_a_big_graph_is_read_quickly(tmp_path: Path) -> None:
    weights = [external(f"blocks.{i}.weight") for i in range(700)]
    nodes = [
        helper.make_node(
            "Conv",
            [f"x{i}", f"blocks.{i % 700}.weight"],
            [f"x{i + 1}"],
            name=f"node_{i}",
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
        )
        for i in range(2000)
    ]
    content = model_of(nodes, weights, [], []).SerializeToString()
    seconds = []
    for _ in range(5):
        start = time.process_time()
        assert len(read_onnx(content, "g").external) == 700
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05


def test_a_file_of_tiny_fields_costs_little() -> None:
    """Eight million empty nodes in 16 MB: refused by their number."""
    content = b"\x08\x0a" + _field(8, b"\x10\x17")
    nodes = b"\x0a\x00" * (8 << 20)
    size = len(nodes)
    length = bytes(
        [size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14 & 0x7F | 0x80, size >> 21]
    )
    with pytest.raises(BadInput, match="over 1000000 fields"):
        read_onnx(content + b"\x3a" + length + nodes, "g.onnx")
