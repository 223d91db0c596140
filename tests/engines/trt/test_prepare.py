"""Edited graphs: the same numbers as the exported ones, and the types that TensorRT needs.

ONNX Runtime computes both. It has no bfloat16 on a CPU, so of the VAE in bfloat16 the types are
inferred strictly, as a strongly typed network infers them.
"""

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.onnx_file import read_onnx
from diffusion_rt.engines.protobuf import Refused
from diffusion_rt.engines.spec import GRAPHS, TensorSpec
from diffusion_rt.engines.trt.edits import edit, to_bfloat16
from diffusion_rt.engines.trt.onnx_graph import read_graph
from diffusion_rt.engines.trt.options import Edits
from diffusion_rt.engines.trt.prepare import Prepared, prepare
from diffusion_rt.engines.trt.weights import map_weights
from diffusion_rt.runtime.pipeline import SHIPPED
from support.model_folders import make_model_folder

PLAIN = {g: Edits(arithmetic="float32" if g.startswith("vae_") else "float16") for g in GRAPHS}
BFLOAT16 = Edits(arithmetic="bfloat16")
SIZES = {"batch": 2, "tokens": 5, "height": 8, "width": 6, "n": 3}


@pytest.fixture(scope="module")
def shipped() -> ModelFolder:
    return open_model(SHIPPED)


def complete(prepared: Prepared, model: Path, scratch: Path) -> onnx.ModelProto:
    """The edited graph with its weights in it, free of what only TensorRT knows."""
    proto = onnx.load_from_string(prepared.content)
    weights = map_weights(model, prepared.weights, scratch)
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = weights[tensor.name].data.tobytes()
            tensor.ClearField("external_data")
            tensor.data_location = TensorProto.DEFAULT
            assert tuple(tensor.dims) == weights[tensor.name].shape
    for node in proto.graph.node:
        for attribute in [a for a in node.attribute if a.name.startswith("TRT_")]:
            node.attribute.remove(attribute)
    return proto


def feeds(specs: tuple[TensorSpec, ...]) -> dict[str, NDArray[Any]]:
    draw = np.random.default_rng(7)
    pixels = specs[0].name == "image"
    sizes = SIZES | ({"height": 64, "width": 48} if pixels else {})
    found: dict[str, NDArray[Any]] = {}
    for spec in specs:
        shape = spec.resolve(sizes)
        if spec.dtype == "int64":
            found[spec.name] = draw.integers(3, 600, shape)
        else:
            found[spec.name] = draw.normal(size=shape).astype(spec.dtype)
    return found


def run(model: bytes | str, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def distance(a: list[NDArray[Any]], b: list[NDArray[Any]]) -> float:
    """The largest root mean square difference of an output, relative to the output's own."""
    pairs = [(x.astype(np.float64), y.astype(np.float64)) for x, y in zip(a, b, strict=True)]
    return max(float(np.sqrt(((x - y) ** 2).mean() / (y**2).mean())) for x, y in pairs)


@pytest.mark.parametrize("graph", GRAPHS)
def test_edits_keep_the_numbers(graph: str, shipped: ModelFolder, tmp_path: Path) -> None:
    prepared = prepare(shipped, graph, PLAIN[graph])
    inputs = feeds(prepared.variant.inputs)
    edited = run(complete(prepared, shipped.path, tmp_path).SerializeToString(), inputs)
    exported = run(str(shipped.path / prepared.variant.file), inputs)
    exact = shipped.variant(graph, "float32")
    wide = {
        spec.name: inputs[spec.name].astype(spec.dtype if spec.dtype != "int64" else "int64")
        for spec in exact.inputs
    }
    reference = run(str(shipped.path / exact.file), wide)
    if PLAIN[graph].arithmetic == "float32":
        assert distance(edited, exported) < 1e-5
    else:  # statistics in float32 bring it no further from the truth
        assert distance(edited, reference) <= 1.2 * distance(exported, reference) + 1e-6
    assert not list(tmp_path.iterdir())


def test_attention_in_float32(shipped: ModelFolder, tmp_path: Path) -> None:
    edits = Edits(arithmetic="float16", wide_attention=True)
    prepared = prepare(shipped, "unet_step", edits)
    proto = complete(prepared, shipped.path, tmp_path)
    types = inferred(proto)
    attention = [node for node in proto.graph.node if node.op_type == "Attention"]
    assert len(attention) == 14
    for node in attention:
        assert {types[name] for name in node.input} == {TensorProto.FLOAT}
    inputs = feeds(prepared.variant.inputs)
    exported = run(str(shipped.path / prepared.variant.file), inputs)
    assert distance(run(proto.SerializeToString(), inputs), exported) < 5e-3


def inferred(proto: onnx.ModelProto) -> dict[str, int]:
    """The type of every value, by strict inference: an operator of mixed types is an error."""
    onnx.checker.check_model(proto, full_check=True)
    full = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    graph = full.graph
    values = {v.name: v.type.tensor_type.elem_type for v in _values(graph)}
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.value_info
    yield from graph.input
    yield from graph.output


@pytest.mark.parametrize("graph", ["vae_decoder", "vae_encoder"])
def test_the_vae_in_bfloat16(graph: str, shipped: ModelFolder, tmp_path: Path) -> None:
    prepared = prepare(shipped, graph, BFLOAT16)
    proto = complete(prepared, shipped.path, tmp_path)
    types = inferred(proto)
    wide = {
        "GroupNormalization": TensorProto.FLOAT,
        "Conv": TensorProto.BFLOAT16,
        "MatMul": TensorProto.BFLOAT16,
        "Attention": TensorProto.BFLOAT16,
        "Sigmoid": TensorProto.BFLOAT16,
        "Add": TensorProto.BFLOAT16,
    }
    seen = set()
    for node in proto.graph.node:
        if node.op_type in wide:
            seen.add(node.op_type)
            assert {types[name] for name in node.input} == {wide[node.op_type]}, node.name
    assert seen == wide.keys()
    for value in (*proto.graph.input, *proto.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT


def test_weights_keep_their_names_and_no_cast_of_one_is_left(shipped: ModelFolder) -> None:
    for graph in GRAPHS:
        for edits in (PLAIN[graph], Edits(arithmetic="float32"), BFLOAT16):
            if edits is BFLOAT16 and not graph.startswith("vae_"):
                continue
            prepared = prepare(shipped, graph, edits)
            proto = onnx.load_from_string(prepared.content)
            names = {tensor.name for tensor in proto.graph.initializer}
            for node in proto.graph.node:
                assert node.op_type != "Cast" or node.input[0] not in names
            assert [w.name for w in prepared.weights] == [w.source.name for w in prepared.weights]


def test_every_attention_says_whether_it_may_be_spelt_out(shipped: ModelFolder) -> None:
    for graph, edits, marked in (
        ("unet_step", Edits(arithmetic="float16"), False),
        ("unet_step", Edits(arithmetic="float32"), True),
        ("unet_step", Edits(arithmetic="float16", wide_attention=True), False),
        ("text_encoder", Edits(arithmetic="float16"), True),
        ("vae_decoder", BFLOAT16, True),
        ("vae_decoder", Edits(arithmetic="float32"), True),
    ):
        proto = onnx.load_from_string(prepare(shipped, graph, edits).content)
        nodes = [node for node in proto.graph.node if node.op_type == "Attention"]
        assert nodes
        for node in nodes:
            values = [a.i for a in node.attribute if a.name == "TRT_decomposable"]
            assert values == ([1] if marked else []), (graph, edits)


@pytest.mark.parametrize("stored", ["float32", "float16"])
@pytest.mark.parametrize("arithmetic", ["float32", "float16"])
def test_weights_stored_in_another_type(stored: str, arithmetic: Any, tmp_path: Path) -> None:
    small = make_model_folder(tmp_path / "model", stored=stored)
    (tmp_path / "scratch").mkdir()
    model = open_model(small.path)
    prepared = prepare(model, "unet_step", Edits(arithmetic=arithmetic))
    assert {weight.dtype for weight in prepared.weights} == {arithmetic}
    proto = complete(prepared, small.path, tmp_path / "scratch")
    x = np.random.default_rng(3).normal(size=(2, 3, 8)).astype(arithmetic)
    (found,) = run(proto.SerializeToString(), {"x": x})
    assert np.abs(found - small.expected(x)).max() < (1e-6 if arithmetic == "float32" else 3e-3)


def test_the_hash_knows_bytes_and_types(tmp_path: Path) -> None:
    hashes = set()
    for stored in ("float32", "float16"):
        make_model_folder(tmp_path / stored, stored=stored)
        model = open_model(tmp_path / stored)
        for arithmetic in ("float32", "float16"):
            hashes.add(prepare(model, "unet_step", Edits(arithmetic=arithmetic)).sha256)
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("graph", "edits"),
    [
        ("text_encoder", Edits(arithmetic="float16", wide_attention=True)),
        ("unet_step", Edits(arithmetic="float16", attention="plugin")),
        ("vae_decoder", BFLOAT16),
    ],
)
def test_damaged_graphs_are_edited_or_refused(
    graph: str, edits: Edits, shipped: ModelFolder
) -> None:
    content = shipped.graph(graph, edits.source).read_bytes()
    chance = random.Random(5)
    outcomes = set()
    for _ in range(120):
        damaged = bytearray(content)
        for _ in range(chance.choice([1, 1, 3])):
            place = chance.randrange(len(damaged))
            kind = chance.randrange(4)
            if kind == 0:
                damaged[place] = chance.randrange(256)
            elif kind == 1:  # a name, or another number
                damaged[place] ^= 1 << chance.randrange(5)
            elif kind == 2:
                del damaged[place : place + chance.choice([1, 2, 40])]
            else:
                damaged[place:place] = damaged[place - 30 : place]
        try:
            found = read_onnx(bytes(damaged), "x")
            network = read_graph(bytes(damaged), found)
            edit(network, edits, graph)
            network.content()
            outcomes.add("edited")
        except (BadInput, Refused):
            outcomes.add("refused")
    assert outcomes == {"edited", "refused"}


def fields_dropped(proto: onnx.ModelProto, chance: random.Random) -> None:
    """Take one thing out of a graph that an edit might count on."""
    node = chance.choice(proto.graph.node)
    kind = chance.randrange(6)
    if kind == 0 and node.input:
        del node.input[chance.randrange(len(node.input)) :]
    elif kind == 1:
        del node.output[:]
    elif kind == 2:
        del node.attribute[:]
    elif kind == 3 and proto.graph.value_info:
        del proto.graph.value_info[:]
    elif kind == 4:
        node.output.append("one too many")
    else:
        node.op_type = chance.choice(["Cast", "Attention", "GroupNormalization", "Transpose"])


@pytest.mark.parametrize(
    ("graph", "edits"),
    [
        ("text_encoder", Edits(arithmetic="float16", wide_attention=True)),
        ("unet_step", Edits(arithmetic="float16", attention="plugin")),
        ("vae_decoder", BFLOAT16),
    ],
)
def test_graphs_that_lack_something_are_edited_or_refused(
    graph: str, edits: Edits, shipped: ModelFolder
) -> None:
    whole = onnx.load(shipped.graph(graph, edits.source), load_external_data=False)
    chance = random.Random(6)
    for _ in range(40):
        proto = onnx.ModelProto()
        proto.CopyFrom(whole)
        for _ in range(chance.choice([1, 5, 30])):
            fields_dropped(proto, chance)
        content = proto.SerializeToString()
        with suppress(BadInput, Refused):
            network = read_graph(content, read_onnx(content, "x"))
            edit(network, edits, graph)
            network.content()


def test_a_graph_that_cannot_be_written_in_bfloat16(tmp_path: Path) -> None:
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["n"], ["c"], value=value),
            helper.make_node("Add", ["x", "c"], ["y"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [4]),
            helper.make_tensor_value_info("n", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    content = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 23)]
    ).SerializeToString()
    with pytest.raises(Refused, match="a tensor within ConstantOfShape"):
        to_bfloat16(read_graph(content, read_onnx(content, "x")))


def test_a_precision_that_was_not_exported(shipped: ModelFolder) -> None:
    with pytest.raises(BadInput, match="has no ONNX graph refiner"):
        prepare(shipped, "refiner", Edits(arithmetic="float32"))
