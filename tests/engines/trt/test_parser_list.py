"""Every graph that is shipped or tested, as TensorRT is given it, against what its parser takes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.engines.trt.options import Edits, Options
from diffusion_rt.engines.trt.prepare import prepare
from diffusion_rt.export.checkpoint import open_checkpoint
from diffusion_rt.export.pipeline import export
from diffusion_rt.runtime.pipeline import SHIPPED
from support.checkpoints import VARIANTS
from support.exported import ExportedModel
from support.parser_list import ATTRIBUTES, TYPES, problems
from support.tracing import tracer

PLAIN = Options(precision="float32", vae_precision="float32")
HALF = [Options(), Options(wide_attention=True, vae_precision="float32")]


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_shipped_model(graph: str) -> None:
    model = open_model(SHIPPED)
    for options in (PLAIN, *HALF):
        assert problems(prepare(model, graph, options.edits(graph)).content) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_tests_own_checkpoints(variant: str, exported_model: ExportedModel) -> None:
    model = open_model(exported_model(variant))
    bfloat16 = Options(precision="float32", vae_precision="bfloat16")
    for graph in model.manifest.graphs:
        for options in (PLAIN, bfloat16):
            assert problems(prepare(model, graph, options.edits(graph)).content) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_tests_own_checkpoints_in_float16(
    variant: str, exported_model: ExportedModel, tmp_path: Path
) -> None:
    folder = exported_model(variant)
    traced = tracer(folder.parent.parent / "traces")
    checkpoint = open_checkpoint(folder)
    export(checkpoint, tmp_path / "half", precisions=["float16"], check=False, tracer=traced)
    model = open_model(tmp_path / "half")
    for graph in model.manifest.graphs:
        for attention in (False, True):
            edits = Edits(arithmetic="float16", wide_attention=attention)
            assert problems(prepare(model, graph, edits).content) == []


@pytest.fixture(scope="module")
def shipped() -> ModelFolder:
    return open_model(SHIPPED)


def node_of(model: Any, op: str) -> Any:
    return next(node for node in model.graph.node if node.op_type == op)


def set_attribute(node: Any, name: str, value: Any) -> None:
    for attribute in list(node.attribute):
        if attribute.name == name:
            node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute(name, value))


def foreign_operator(model: Any) -> None:
    node_of(model, "Sigmoid").op_type = "Det"


def foreign_domain(model: Any) -> None:
    node_of(model, "Sigmoid").domain = "com.microsoft"


def unknown_attribute(model: Any) -> None:
    set_attribute(node_of(model, "Transpose"), "inverse", 1)


def cubic(model: Any) -> None:
    set_attribute(node_of(model, "Resize"), "mode", "cubic")


def smooth(model: Any) -> None:
    set_attribute(node_of(model, "Resize"), "antialias", 1)


def softcap(model: Any) -> None:
    set_attribute(node_of(model, "Attention"), "softcap", 30.0)


def scores(model: Any) -> None:
    node_of(model, "Attention").output.extend(["", "", "scores"])


def double(model: Any) -> None:
    set_attribute(node_of(model, "Cast"), "to", TensorProto.DOUBLE)


def old(model: Any) -> None:
    model.opset_import[0].version = 26


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (foreign_operator, "Det"),
        (foreign_domain, "no such operator (com.microsoft)"),
        (unknown_attribute, "an attribute inverse"),
        (cubic, "mode of cubic"),
        (smooth, "antialias of 1"),
        (softcap, "softcap of 30.0"),
        (scores, "more than one output"),
        (double, "to of 11"),
        (old, "opset 26"),
    ],
)
def test_what_is_planted_is_found(
    shipped: ModelFolder, break_it: Callable[[Any], None], words: str
) -> None:
    content = prepare(shipped, "unet_step", Options().edits("unet_step")).content
    model = onnx.load_model_from_string(content)
    changed = copy.deepcopy(model)
    break_it(changed)
    found = problems(changed.SerializeToString())
    assert any(words in line for line in found), found


def test_a_filter_that_is_cast_is_found() -> None:
    """The reason why our edits fold casts of weights."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["filter"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Conv", ["x", "half"], ["y"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 2, 4, 4])],
        [helper.make_tensor("filter", TensorProto.FLOAT, [2, 2, 1, 1], [1, 0, 0, 1])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    assert problems(made.SerializeToString()) == ["Conv : its filter is no initializer"]


def test_the_table_names_operators_of_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert set(TYPES) - known <= {"Scatter", "Upsample"}, "those two are only of older opsets"
    assert set(ATTRIBUTES) <= set(TYPES)
    for op, attributes in ATTRIBUTES.items():
        schema = onnx.defs.get_schema(op, max_inclusive_version=23)
        assert attributes.keys() - schema.attributes.keys() <= {"TRT_decomposable"}
