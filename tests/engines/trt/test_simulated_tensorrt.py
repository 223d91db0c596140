"""The simulated TensorRT computes what the model says, and breaks where a rule is broken."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from diffusion_rt.kernels.driver.simulator import Simulator
from support import simulated_tensorrt as trt
from support.simulated_tensorrt.rules import Broken, attach

WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


class Messages(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: Any, msg: str) -> None:
        self.lines.append(msg)


@pytest.fixture
def device() -> Iterator[Simulator]:
    made = Simulator()
    attach(made)
    yield made
    attach(None)
    made.close()


def model(dtype: int = TensorProto.FLOAT, nodes: Any = None, external: bool = True) -> bytes:
    """`y = x @ weight` over [batch, 4], its weight to be loaded from outside."""
    values = WEIGHT if dtype == TensorProto.FLOAT else WEIGHT.astype(np.float16)
    weight = numpy_helper.from_array(values, "weight")
    if external:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="nowhere")
    graph = helper.make_graph(
        nodes or [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", dtype, ["batch", 4])],
        [helper.make_tensor_value_info("y", dtype, ["batch", 3])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 23)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString()
    return made


def network_of(
    content: bytes, log: Messages, **weights: NDArray[Any]
) -> tuple[trt.Builder, trt.INetworkDefinition]:
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.load_model_proto(content)
    for name, values in weights.items():
        assert parser.load_initializer(name, values.ctypes.data, values.nbytes)
    assert parser.parse_model_proto(), parser.get_error(0)
    return builder, network


def built(log: Messages, *flags: trt.BuilderFlag, ranges: Any = ((1, 2, 8), (9, 9, 9))) -> bytes:
    builder, network = network_of(model(), log, weight=WEIGHT)
    config = builder.create_builder_config()
    for flag in flags:
        config.set_flag(flag)
    for low, opt, high in ranges:
        profile = builder.create_optimization_profile()
        profile.set_shape("x", (low, 4), (opt, 4), (high, 4))
        assert config.add_optimization_profile(profile) >= 0
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, log.lines
    return bytes(memoryview(plan))


class Running:
    """A context with everything set for `batch` rows."""

    def __init__(self, device: Simulator, plan: bytes, log: Messages, batch: int = 2) -> None:
        self.device, self.log = device, log
        self.stream = device.stream()
        engine = trt.Runtime(log).deserialize_cuda_engine(plan)
        assert engine is not None, log.lines
        self.engine = engine
        user = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(user)
        assert context is not None, log.lines
        self.context = context
        self.x, self.y = device.allocate(9 * 16), device.allocate(9 * 12)
        self.scratch = device.allocate(engine.device_memory_size_v2)
        context.set_device_memory(self.scratch.address, self.scratch.nbytes)
        assert context.set_tensor_address("x", self.x.address)
        assert context.set_tensor_address("y", self.y.address)
        assert context.set_input_shape("x", (batch, 4))
        self.put(np.ones((batch, 4), np.float32))

    def put(self, values: NDArray[np.float32]) -> None:
        staged = self.device.pinned(values.nbytes)
        staged.array[:] = values.reshape(-1).view(np.uint8)
        self.stream.copy(self.x, staged)
        self.stream.synchronize()
        staged.close()

    def get(self, batch: int) -> NDArray[np.float32]:
        staged = self.device.pinned(self.y.nbytes)
        self.stream.copy(staged, self.y)
        self.stream.synchronize()
        values = staged.array.view(np.float32).reshape(-1, 3)[:batch].copy()
        staged.close()
        return values

    def run(self) -> bool:
        return self.context.execute_async_v3(self.stream.handle)

    def capture(self) -> Any:
        def enqueue() -> None:
            assert self.run()

        return self.stream.capture(enqueue)


def test_it_computes_eagerly_and_captured(device: Simulator) -> None:
    run = Running(device, built(Messages()), Messages())
    assert run.context.get_tensor_shape("y") == (2, 3)
    assert run.run()
    np.testing.assert_allclose(run.get(2), np.ones((2, 4)) @ WEIGHT, rtol=1e-6)
    graph = run.capture()
    run.put(np.full((2, 4), 3, np.float32))
    graph.replay(run.stream)
    np.testing.assert_allclose(run.get(2), np.full((2, 4), 3) @ WEIGHT, rtol=1e-6)


def test_what_is_not_set_is_refused(device: Simulator) -> None:
    run = Running(device, built(Messages()), Messages())
    engine = run.engine
    user = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    second = engine.create_execution_context(user)
    assert second is not None
    assert second.active_optimization_profile == -1
    assert not second.set_input_shape("x", (9, 4)), "no profile yet"
    assert second.set_optimization_profile_async(1, run.stream.handle)
    assert second.infer_shapes() == ["x"]
    assert not second.execute_async_v3(run.stream.handle)
    assert not second.set_input_shape("x", (2, 4)), "outside the profile"
    assert second.set_input_shape("x", (9, 4))
    assert not second.execute_async_v3(run.stream.handle), "no address"
    assert not second.set_tensor_address("z", 256)
    assert not second.set_tensor_address("x", run.x.address + 4)
    assert second.set_tensor_address("x", run.x.address)
    assert second.set_tensor_address("y", run.y.address)
    with pytest.raises(Broken, match="scratch memory of 0 bytes"):
        second.execute_async_v3(run.stream.handle)
    second.set_device_memory(run.scratch.address, run.scratch.nbytes - 256)
    with pytest.raises(Broken, match="scratch memory"):
        second.execute_async_v3(run.stream.handle)
    second.set_device_memory(run.scratch.address, run.scratch.nbytes)
    assert second.execute_async_v3(run.stream.handle)
    run.stream.synchronize()


def test_shapes_are_gone_after_a_change_of_profile(device: Simulator) -> None:
    run = Running(device, built(Messages()), Messages())
    assert run.context.set_optimization_profile_async(1, run.stream.handle)
    assert not run.run()
    assert "no shape is set" in run.log.lines[-1]


def test_undefined_behaviour_is_loud(device: Simulator) -> None:
    plan = built(Messages())
    run = Running(device, plan, Messages())
    with pytest.raises(Broken, match="default stream"):
        run.context.execute_async_v3(0)
    with pytest.raises(Broken, match="captured before one run"):
        run.capture()
    with pytest.raises(Broken, match="aligned"):
        run.context.set_device_memory(run.scratch.address + 8, 8)
    with pytest.raises(Broken, match="memory of its own"):
        run.engine.create_execution_context()
    with pytest.raises(Broken, match="damaged plan"):
        trt.Runtime(run.log).deserialize_cuda_engine(plan[:-1] + b"?")
    other = device.stream()
    assert run.context.set_optimization_profile_async(0, other.handle)
    assert run.context.set_input_shape("x", (2, 4))
    assert run.run()
    with pytest.raises(Broken, match="before the switch"):
        run.stream.synchronize()


def test_scratch_is_given_anew_once_it_is_divided_anew(device: Simulator) -> None:
    run = Running(device, built(Messages()), Messages())
    assert run.run()
    assert 0 < run.context.update_device_memory_size_for_shapes() <= run.scratch.nbytes
    with pytest.raises(Broken, match="not given since it was divided anew"):
        run.run()
    run.context.set_device_memory(run.scratch.address, run.scratch.nbytes)
    assert run.run()
    run.stream.synchronize()


def test_layers_are_plain_until_their_class_is_changed(device: Simulator) -> None:
    log = Messages()
    sizes: list[str | int | None] = ["batch", 1, "tokens", 4]
    graph = helper.make_graph(
        [
            helper.make_node("Attention", ["x", "x", "x"], ["h"], scale=0.25),
            helper.make_node("MatMul", ["h", "weight"], ["y"]),
        ],
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*sizes[:3], 3])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    network = trt.Builder(log).create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.load_model_proto(made.SerializeToString())
    assert parser.load_initializer("weight", WEIGHT.ctypes.data, WEIGHT.nbytes)
    assert parser.parse_model_proto(), parser.get_error(0)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    constants = [layer for layer in layers if layer.type is trt.LayerType.CONSTANT]
    assert [layer.name.split("*")[0] for layer in constants] == ["weight", *["(Unnamed Layer"] * 2]
    assert len(layers) == 5
    values = []
    for layer in constants:
        assert not hasattr(layer, "weights")
        layer.__class__ = trt.IConstantLayer
        values.append(layer.weights)  # type: ignore[attr-defined]
    assert values[0].ctypes.data == WEIGHT.ctypes.data
    assert [float(each[0]) for each in values[1:]] == [0.5, 0.5], "the root of the scale"
    assert network.set_weights_name(trt.Weights(values[1]), "ours")
    assert not network.set_weights_name(trt.Weights(values[2]), "ours"), "others have that name"
    assert not network.set_weights_name(trt.Weights(values[0][:3]), "part"), "of another count"
    assert not network.set_weights_name(trt.Weights(WEIGHT.copy()), "none"), "of no layer"
    assert network.set_weights_name(trt.Weights(values[1]), "ours too")


def test_a_context_must_outlive_its_work(device: Simulator) -> None:
    run = Running(device, built(Messages()), Messages())
    assert run.run()
    run.stream.synchronize()
    graph = run.capture()
    del run.context
    graph.replay(run.stream)
    with pytest.raises(Broken, match="destroyed"):
        run.stream.synchronize()


def test_foreign_plans_are_refused(device: Simulator) -> None:
    plan, log = built(Messages()), Messages()
    compatible = built(log, trt.BuilderFlag.VERSION_COMPATIBLE)
    runtime = trt.Runtime(log)
    assert runtime.deserialize_cuda_engine(b"nonsense") is None
    assert runtime.deserialize_cuda_engine(compatible) is None
    runtime.engine_host_code_allowed = True
    assert runtime.deserialize_cuda_engine(compatible) is not None
    with Simulator(arch=80) as older:
        attach(older)
        assert trt.Runtime(log).deserialize_cuda_engine(plan) is None
    assert "sm_90" in log.lines[-1]


def test_a_stripped_plan_has_to_be_refitted(device: Simulator) -> None:
    log = Messages()
    plan = built(log, trt.BuilderFlag.STRIP_PLAN, trt.BuilderFlag.REFIT_IDENTICAL)
    assert WEIGHT.tobytes() not in plan
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    assert engine is not None
    user = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert engine.create_execution_context(user) is None
    refitter = trt.Refitter(engine, log)
    assert refitter.get_missing_weights() == ["weight"]
    assert not refitter.refit_cuda_engine()
    prototype = refitter.get_weights_prototype("weight")
    assert (prototype.dtype, prototype.size) == (trt.DataType.FLOAT, 12)
    wrong = trt.Weights(trt.DataType.HALF, WEIGHT.ctypes.data, 12)
    assert not refitter.set_named_weights("weight", wrong)
    other = WEIGHT + 1
    assert refitter.set_named_weights("weight", trt.Weights(other))
    with pytest.raises(Broken, match="REFIT_IDENTICAL"):
        refitter.refit_cuda_engine()
    assert refitter.set_named_weights("weight", trt.Weights(WEIGHT))
    assert refitter.refit_cuda_engine()
    assert engine.create_execution_context(user) is not None


def test_profiles_that_no_build_takes(device: Simulator) -> None:
    log = Messages()
    builder, network = network_of(model(), log, weight=WEIGHT)
    config = builder.create_builder_config()
    assert builder.build_serialized_network(network, config) is None
    profile = builder.create_optimization_profile()
    assert config.add_optimization_profile(profile) == -1
    with pytest.raises(ValueError, match="min <= opt <= max"):
        profile.set_shape("x", (3, 4), (2, 4), (8, 4))
    profile.set_shape("x", (1, 5), (1, 5), (1, 5))
    assert config.add_optimization_profile(profile) == 0
    assert builder.build_serialized_network(network, config) is None
    assert "profile 0" in log.lines[-1]


class Watching(trt.IProgressMonitor):
    def __init__(self, stop: bool = False, error: bool = False) -> None:
        trt.IProgressMonitor.__init__(self)
        self.stop, self.error, self.open = stop, error, 0

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        self.open += 1

    def step_complete(self, phase_name: str, step: int) -> bool:
        if self.error:
            raise KeyboardInterrupt
        return not self.stop

    def phase_finish(self, phase_name: str) -> None:
        self.open -= 1


def test_a_build_is_watched_and_cancelled(device: Simulator) -> None:
    log = Messages()
    builder, network = network_of(model(), log, weight=WEIGHT)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 4), (1, 4), (1, 4))
    config.add_optimization_profile(profile)
    cache = config.create_timing_cache(b"")
    assert cache is not None
    assert config.set_timing_cache(cache, False)
    for stop in (False, True):
        config.progress_monitor = watching = Watching(stop)
        plan = builder.build_serialized_network(network, config)
        assert (plan is None) is stop
        assert watching.open == 0
    kept = bytes(memoryview(cache.serialize()))
    assert config.create_timing_cache(kept) is not None
    assert config.create_timing_cache(kept[:-1]) is None
    config.progress_monitor = Watching(error=True)
    with pytest.raises(Broken, match="KeyboardInterrupt"):
        builder.build_serialized_network(network, config)


def test_models_that_the_parser_refuses(device: Simulator) -> None:
    log = Messages()

    def parser_of(content: bytes) -> trt.OnnxParser:
        parser = trt.OnnxParser(trt.Builder(log).create_network(0), log)
        assert parser.load_model_proto(content)
        return parser

    assert not trt.OnnxParser(trt.Builder(log).create_network(0), log).load_model_proto(b"?")
    parser = parser_of(model())
    assert not parser.parse_model_proto(), "no data for the weight"
    assert not parser.load_initializer("other", WEIGHT.ctypes.data, WEIGHT.nbytes)
    assert not parser.load_initializer("weight", WEIGHT.ctypes.data, WEIGHT.nbytes - 4)
    assert parser.num_errors == 3
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "weight"], ["y"]),
    ]
    parser = parser_of(model(nodes=nodes, external=False))
    assert not parser.parse_model_proto(), "two types in one product"


def test_nothing_works_without_a_device() -> None:
    for make in (trt.Builder, trt.Runtime):
        with pytest.raises(TypeError, match="nullptr"):
            make(Messages())
