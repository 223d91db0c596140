"""A graph that was changed at random is lowered to what it now computes, or is refused."""

import random
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.engines.native.graph import read_graph
from diffusion_rt.engines.native.lower import lower
from diffusion_rt.engines.native.sizes import Sized, sizes_of
from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.runtime.pipeline import SHIPPED
from support.native_plans import draw_inputs, graph_sizes, relative_error, run_plan

VOCABULARY = 600
WORDS = {"axis": (-1, 0, 1, 2), "is_causal": (0, 1), "transB": (0, 1), "num_groups": (1, 2, 4, 16)}
NUMBERS = {"epsilon": (1e-5, 1e-2), "scale": (0.1, 0.5), "alpha": (1.0, 0.5), "beta": (1.0, 0.5)}

Change = Callable[[onnx.GraphProto, random.Random, dict[str, Sized]], None]


def another_input(graph: onnx.GraphProto, draw: random.Random, sizes: dict[str, Sized]) -> None:
    """A node reads another value of the same shape, made before it."""
    places = dict.fromkeys(sizes, -1)
    places |= {name: i for i, node in enumerate(graph.node) for name in node.output}
    index = draw.randrange(len(graph.node))
    node = graph.node[index]
    slot = draw.randrange(len(node.input))
    old = sizes[node.input[slot]]
    others = [
        name
        for name, size in sizes.items()
        if name and size.shape == old.shape and places[name] < index
        if (size.array is None) == (old.array is None)
    ]
    node.input[slot] = draw.choice(sorted(others))


def swapped(graph: onnx.GraphProto, draw: random.Random, sizes: dict[str, Sized]) -> None:
    """A node reads its first two inputs the other way."""
    node = draw.choice([node for node in graph.node if len(node.input) >= 2])
    node.input[0], node.input[1] = node.input[1], node.input[0]


def another_attribute(graph: onnx.GraphProto, draw: random.Random, sizes: dict[str, Sized]) -> None:
    """A number among the attributes is another one."""
    known = [
        (node, attribute)
        for node in graph.node
        for attribute in node.attribute
        if attribute.name in WORDS or attribute.name in NUMBERS or attribute.name == "perm"
    ]
    _, attribute = draw.choice(known)
    if attribute.name in WORDS:
        attribute.i = draw.choice(WORDS[attribute.name])
    elif attribute.name in NUMBERS:
        attribute.f = draw.choice(NUMBERS[attribute.name])
    else:
        order = list(attribute.ints)
        draw.shuffle(order)
        attribute.ints[:] = order


def another_operator(graph: onnx.GraphProto, draw: random.Random, sizes: dict[str, Sized]) -> None:
    """A function of one or of two tensors is another one."""
    groups = (("Add", "Mul"), ("Sigmoid", "Gelu", "Identity"), ("Sin", "Cos"))
    nodes = [(n, g) for n in graph.node for g in groups if n.op_type in g]
    node, group = draw.choice(nodes)
    node.op_type = draw.choice(group)
    del node.attribute[:]


def seen_inside(graph: onnx.GraphProto, draw: random.Random, sizes: dict[str, Sized]) -> None:
    """A value between two operators becomes an output too."""
    outputs = {output.name for output in graph.output}
    inside = [v for v in graph.value_info if v.type.tensor_type.elem_type == 1]
    made = {name for node in graph.node for name in node.output}
    choice = [v for v in inside if v.name in made - outputs and sizes[v.name].array is None]
    graph.output.append(draw.choice([v for v in choice if not v.name.endswith(".float32")]))


CHANGES: tuple[Change, ...] = (
    another_input,
    swapped,
    another_attribute,
    another_operator,
    seen_inside,
)


@cache
def shipped(graph: str) -> onnx.ModelProto:
    return onnx.load(SHIPPED / f"{graph}.float32.onnx", load_external_data=False)


def theirs(model: onnx.ModelProto, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """What ONNX Runtime makes of it; None where it does not take it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(SHIPPED)
    )
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))
    except Exception:
        return None


@pytest.mark.parametrize(
    ("graph", "examples"),
    [
        ("unet_timestep", 12),
        ("unet_prompt", 12),
        ("text_encoder", 25),
        ("text_encoder_2", 25),
        ("vae_encoder", 15),
        ("unet_step", 12),
    ],
)
def test_a_changed_graph_is_never_computed_wrongly(graph: str, examples: int) -> None:
    model = open_model(SHIPPED)
    variant = model.variant(graph, "float32")
    sizes = graph_sizes(graph, 2, 5, 4, 4)
    inputs = draw_inputs(variant.inputs, sizes, VOCABULARY)
    shapes = {name: array.shape for name, array in inputs.items()}
    known = sizes_of(read_graph(shipped(graph).SerializeToString(), graph), shapes, graph)
    compared = 0
    for seed in range(examples):
        draw = random.Random(f"{graph} {seed}")
        changed = onnx.ModelProto()
        changed.CopyFrom(shipped(graph))
        try:
            draw.choice(CHANGES)(changed.graph, draw, known)
        except IndexError:  # nothing of this kind in the graph
            continue
        specs = [
            *variant.outputs,
            *(TensorSpec(o.name, "float32", known[o.name].shape) for o in changed.graph.output),
        ]
        outputs = {spec.name: spec for spec in reversed(specs)}
        wanted = [outputs[output.name] for output in changed.graph.output]
        try:
            read = read_graph(changed.SerializeToString(), graph)
            plan = lower(read, variant.inputs, wanted, sizes, "float32", graph)
        except BadInput:
            continue
        truth = theirs(changed, inputs)
        if truth is None:
            continue
        with np.errstate(all="ignore"):
            found = run_plan(plan, model.path, inputs)
        for name, values in truth.items():
            if np.isfinite(values).all() and np.abs(values).max() < 1e4:
                assert found[name].shape == values.shape, (seed, name)
                assert relative_error(found[name], values) <= 1e-4, (seed, name)
                compared += 1
    assert compared >= examples // 4


@settings(max_examples=60, deadline=None)
@given(
    graph=st.sampled_from(["unet_timestep", "text_encoder_2", "vae_encoder"]),
    seed=st.integers(0, 1 << 20),
)
def test_bytes_changed_at_random_are_refused_or_lowered(graph: str, seed: int) -> None:
    content = bytearray(shipped(graph).SerializeToString())
    draw = random.Random(seed)
    for _ in range(draw.randint(1, 4)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    variant = open_model(SHIPPED).variant(graph, "float32")
    sizes = graph_sizes(graph, 1, 5, 4, 4)
    reason = ""
    try:
        read = read_graph(bytes(content), "g")
        lower(read, variant.inputs, variant.outputs, sizes, "float32", "g")
    except BadInput as refused:
        reason = str(refused)
    assert reason == "" or reason.startswith("g: ")
    assert "\n" not in reason


def test_views_without_end_are_refused() -> None:
    names = [f"v{i}" for i in range(5001)]
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in pairwise(names)]
    nodes[0] = helper.make_node("Sigmoid", ["v0"], ["v1"])
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4]) for n in ("v0", "v5000")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    specs = [TensorSpec(n, "float32", (4,)) for n in ("v0", "v5000")]
    read = read_graph(model.SerializeToString(), "g")
    with pytest.raises(BadInput, match="views of views without end"):
        lower(read, specs[:1], specs[1:], {}, "float32", "g")
