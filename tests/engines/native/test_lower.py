"""A graph's plan, run by the NumPy references, computes what the graph does; it is short."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native.graph import read_graph
from diffusion_rt.engines.native.lower import lower, plan_of
from diffusion_rt.engines.native.plan import (
    VECTOR,
    Arithmetic,
    Attention,
    Convolution,
    Copy,
    Elementwise,
    GroupNorm,
    Plan,
    Product,
)
from diffusion_rt.engines.ort.backend import OrtBackend
from diffusion_rt.engines.spec import GRAPHS
from support.native_plans import (
    draw_inputs,
    graph_sizes,
    relative_error,
    run_engine,
    run_plan,
    run_rounded,
)

SHIPPED = Path(__file__).resolve().parents[3] / "runtime" / "models" / "shapes-xl"
MODELS = ("shapes-xl", "plain", "deep", "odd")

# batch, tokens, and latents, also of sizes that 2 does not divide
SIZES = ((1, 77, 8, 8), (2, 7, 5, 9), (3, 154, 11, 7))


@cache
def opened(folder: Path) -> ModelFolder:
    return open_model(folder)


@pytest.fixture
def model(request: pytest.FixtureRequest, exported_model: Callable[[str], Path]) -> ModelFolder:
    name = request.param
    return opened(SHIPPED if name == "shapes-xl" else exported_model(name))


def shipped_plan(graph: str, dtype: Arithmetic = "float32", batch: int = 2) -> Plan:
    return plan_of(opened(SHIPPED), graph, graph_sizes(graph, batch, 20, 8, 12), dtype)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_a_plan_computes_what_onnx_runtime_does(model: ModelFolder, graph: str) -> None:
    backend = OrtBackend(model, threads=1)
    vocabulary = 645 if model.path == SHIPPED else 350
    for batch, tokens, height, width in SIZES:
        text = graph.startswith("text")
        sizes = graph_sizes(graph, batch, min(tokens, 32) if text else tokens, height, width)
        plan = plan_of(model, graph, sizes, "float32")
        inputs = draw_inputs(model.variant(graph, "float32").inputs, sizes, vocabulary)
        found = run_plan(plan, model.path, inputs)
        truth = run_engine(
            backend.load(graph), inputs, {n: plan.buffers[n].shape for n in plan.outputs}
        )
        for name, values in truth.items():
            assert relative_error(found[name], values) <= 5e-6, (name, sizes)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_rounding_costs_at_most_twice_what_it_costs_plain_code(
    graph: str, dtype: Arithmetic
) -> None:
    """Against float32 over the same weights, which float16 holds exactly."""
    model = opened(SHIPPED)
    sizes = graph_sizes(graph, 2, 20, 8, 12)
    inputs = draw_inputs(model.variant(graph, "float16").inputs, sizes, 645)
    specs = {spec.name: spec for spec in model.variant(graph, "float32").inputs}
    wide = {name: values.astype(specs[name].dtype) for name, values in inputs.items()}
    truth = run_plan(plan_of(model, graph, sizes, "float32"), model.path, wide)
    file, narrow = model.graph(graph, "float32"), model.graph(graph, "float16")
    plain = run_rounded(file, narrow, dtype, wide)
    plan = plan_of(model, graph, sizes, dtype)
    found = run_plan(plan, model.path, inputs if dtype == "float16" else wide)
    for name, values in truth.items():
        error, yardstick = (relative_error(one[name], values) for one in (found, plain))
        assert 0 < error <= 2 * yardstick, name


def test_the_plan_of_a_step_has_no_transposes_splits_or_joins() -> None:
    model = opened(SHIPPED)
    graph = read_graph(model.graph("unet_step", "float16").read_bytes(), "unet_step")
    before = Counter(node.operator for node in graph.nodes)
    plan = shipped_plan("unet_step", "float16")
    after = Counter(type(operation).__name__ for operation in plan.operations)
    # Only the latent on its way in and the prediction on its way out are turned.
    assert [o.name for o in plan.operations if isinstance(o, Copy)] == [
        "latent.pixels",
        "prediction",
    ]
    assert after["Attention"] == before["Attention"]
    assert after["GroupNorm"] == before["GroupNormalization"]
    assert after["LayerNorm"] == before["LayerNormalization"]
    products = before["MatMul"] - 2 * before["Attention"] // 2  # q, k and v of 7 in one
    shortcuts = before["Conv"] - after["Convolution"]
    assert after["Product"] == products + shortcuts
    assert "Elementwise" not in after


def test_epilogues_take_in_what_follows() -> None:
    plan = shipped_plan("unet_step")
    products = {o.name: o for o in plan.operations if isinstance(o, Product)}
    convolutions = {o.name: o for o in plan.operations if isinstance(o, Convolution)}
    block = "mid_block.attentions.0.transformer_blocks.0"
    assert products[f"{block}.ff.net.0.proj"].epilogue.activation == "geglu"
    assert products[f"{block}.ff.net.2"].epilogue.residual is not None
    assert products[f"{block}.attn1.to_q"].columns == 3 * 128
    assert products["mid_block.attentions.0.proj_out"].epilogue.residual is not None
    first = convolutions["mid_block.resnets.0.conv1"].epilogue
    assert first.vector is not None
    assert first.vector.buffer == "mid_block.resnets.0.time_emb_proj"
    assert first.residual is None
    assert convolutions["mid_block.resnets.0.conv2"].epilogue.residual is not None


def test_a_skip_is_read_beside_the_rest_and_never_joined() -> None:
    plan = shipped_plan("unet_step")
    twos = [o for o in plan.operations if isinstance(o, (GroupNorm, Product)) and o.reads[1:]]
    norms = [o for o in twos if isinstance(o, GroupNorm)]
    shortcuts = [o for o in twos if isinstance(o, Product) and len(o.sources) == 2]
    assert len(norms) == len(shortcuts) == 6
    for norm, shortcut in zip(norms, shortcuts, strict=True):
        assert [s.buffer for s in norm.sources] == [s.buffer for s in shortcut.sources]


def test_attention_reads_packed_heads() -> None:
    plan = shipped_plan("unet_step")
    self_attention = next(o for o in plan.operations if isinstance(o, Attention))
    query, key, value = self_attention.reads
    assert query.buffer == key.buffer == value.buffer
    assert (query.offset, key.offset, value.offset) == (0, 96, 192)
    assert query.strides == key.strides == (96 // 4 * 3 * 96, 3 * 96, 32, 1)


def test_hidden_states_are_written_where_they_belong() -> None:
    plan = shipped_plan("text_encoder_2")
    assert not [o for o in plan.operations if isinstance(o, Copy)]
    written = [o.output.offset for o in plan.operations if o.output.buffer == "hidden_states"]
    assert written == [layer * 2 * 20 * 128 for layer in range(4)]


@pytest.mark.parametrize("graph", GRAPHS)
def test_rows_begin_at_multiples_of_a_vector(graph: str) -> None:
    """What kernels read 16 bytes at a time; Copy and Elementwise take any strides."""
    plan = shipped_plan(graph, "float16")
    for operation in plan.operations:
        if isinstance(operation, (Copy, Elementwise)):
            continue
        for view in (*operation.reads, operation.output):
            if view.dtype == "float16":
                steps = [s for n, s in zip(view.shape, view.strides, strict=True) if n > 1]
                assert view.strides[-1] == 1, operation.name
                assert all(step % VECTOR == 0 for step in steps[:-1]), operation.name
                assert view.offset % VECTOR == 0, operation.name


def test_a_plan_is_the_same_every_time() -> None:
    first, second = shipped_plan("unet_step"), shipped_plan("unet_step")
    assert first.operations == second.operations
    assert first.buffers == second.buffers
    assert first.weights == second.weights


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_any_graph_is_lowered_for_any_arithmetic(dtype: Arithmetic) -> None:
    """The float32 graph in another arithmetic: what goes in and out is cast."""
    model = opened(SHIPPED)
    variant = model.variant("unet_step", "float32")
    graph = read_graph(model.graph("unet_step", "float32").read_bytes(), "unet_step")
    sizes = graph_sizes("unet_step", 1, 7, 4, 4)
    plan = lower(graph, variant.inputs, variant.outputs, sizes, dtype, "unet_step")
    inputs = draw_inputs(variant.inputs, sizes, 645)
    found = run_plan(plan, model.path, inputs)
    truth = run_plan(plan_of(model, "unet_step", sizes, "float32"), model.path, inputs)
    assert found["prediction"].dtype == np.float32
    error = relative_error(found["prediction"], truth["prediction"])
    assert 0 < error <= {"float16": 5e-3, "bfloat16": 4e-2}[dtype]
