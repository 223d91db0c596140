"""Convolutions by cuDNN, over a library that stands for it, and against the real frontend."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.engines.native import cudnn_ways
from diffusion_rt.engines.native import plan as p
from diffusion_rt.engines.native.cudnn_ways import Cudnn, graph_of
from diffusion_rt.engines.native.executor import Program
from diffusion_rt.engines.native.measure import measure
from diffusion_rt.engines.native.packing import to_bfloat16, widened
from diffusion_rt.engines.native.tactics import Tactics, key_of
from diffusion_rt.engines.native.ways import LibraryFailed, Way
from diffusion_rt.kernels import conv
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.kernels.epilogue import Epilogue
from support import fake_cudnn
from support.device_graphs import simulated_gpu
from support.fake_cudnn import REFUSING, RUNNING, FakeCudnn
from support.native_run import Runner, chip_of, normal
from support.plan_maker import PlanMaker, rounded

ERROR = {"float16": 1e-3, "bfloat16": 8e-3}  # of one rounding, twice

SIZES: dict[str, Any] = {
    "dtype": "float16",
    "images": 1,
    "height": 4,
    "width": 4,
    "channels": 8,
    "filters": 8,
    "kernel": (1, 1),
}


def one_convolution(
    dtype: p.Arithmetic = "float16",
    *,
    images: int = 1,
    size: tuple[int, int] = (4, 5),
    channels: int = 16,
    filters: int = 16,
    kernel: tuple[int, int] = (3, 3),
    stride: int = 1,
    padding: tuple[int, int, int, int] = (1, 1, 1, 1),
    upsampled: tuple[int, int] | None = None,
    sources: int = 1,
    bias: bool = False,
    vector: bool = False,
    residual: str = "",  # "apart" or "in place"
    wider: int = 0,  # how much wider the buffers are that hold source and output
    **epilogue: Any,
) -> p.Plan:
    make = PlanMaker(dtype)
    sizes = conv.Convolution(
        dtype=dtype,
        images=images,
        height=size[0],
        width=size[1],
        channels=channels * sources,
        filters=filters,
        kernel=kernel,
        stride=stride,
        padding=padding,
        enlarged=upsampled,
    )
    whole = {
        "x": make.buffer("x", (images, *size, channels + wider), "input"),
        "y": make.buffer("y", (images, *sizes.output_size, filters + wider), "output"),
    }
    x, y = (
        p.View(name, dtype, (*view.shape[:3], view.shape[3] - wider), view.strides, wider)
        for name, view in whole.items()
    )
    added = None
    if residual == "apart":
        added = make.buffer("r", y.shape, "input")
    elif residual == "in place":
        added = y
    make.operations = [
        p.Convolution(
            name="a convolution",
            sources=(x,) * sources,
            weight=make.weight("w", normal(1, filters, *kernel, channels * sources)),
            kernel=kernel,
            stride=stride,
            padding=padding,
            upsampled=upsampled,
            channels=channels * sources,
            filters=filters,
            epilogue=p.Epilogue(
                bias=make.weight("b", normal(2, filters)) if bias else None,
                vector=make.buffer("v", (images, filters), "input") if vector else None,
                residual=added,
                **epilogue,
            ),
            output=y,
        )
    ]
    return make.plan()


def opened(**how: Any) -> tuple[Any, FakeCudnn, Cudnn]:
    gpu = simulated_gpu(arch=80)
    assert isinstance(gpu.device, Simulator)
    fake = FakeCudnn(gpu.device, **how)
    return gpu, fake, Cudnn(fake, gpu.device)


def of_library(program: Program) -> list[Way]:
    """The library's ways to run the only operation."""
    (found,) = program.options
    return [way for way in found.ways if not way.variants]


def stored(values: Any, dtype: str) -> Any:
    return to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from(["float16", "bfloat16"]),
    images=st.integers(1, 3),
    size=st.tuples(st.integers(3, 7), st.integers(3, 7)),
    channels=st.sampled_from([8, 24]),
    filters=st.sampled_from([16, 48]),
    kernel=st.sampled_from([(1, 1), (3, 3), (3, 2)]),
    stride=st.integers(1, 2),
    padding=st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 1, 1), (2, 0, 1, 1)]),
    bias=st.booleans(),
    vector=st.booleans(),
    residual=st.sampled_from(["", "apart"]),
    wider=st.sampled_from([0, 8]),
    name=st.sampled_from(RUNNING),
)
def test_a_convolution_is_the_reference(
    dtype: Any,
    images: int,
    size: tuple[int, int],
    channels: int,
    filters: int,
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, int, int, int],
    bias: bool,
    vector: bool,
    residual: str,
    wider: int,
    name: str,
) -> None:
    plan = one_convolution(
        dtype,
        images=images,
        size=size,
        channels=channels,
        filters=filters,
        kernel=kernel,
        stride=stride,
        padding=padding,
        bias=bias,
        vector=vector,
        residual=residual,
        wider=wider,
    )
    gpu, fake, library = opened()
    runner = Runner(plan, gpu, (library,))
    ways = {way.name: way for way in of_library(runner.program)}
    assert list(ways) == [f"cudnn {one}" for one in (RUNNING[0], *REFUSING, RUNNING[1])]
    runner.program.ways = (ways[f"cudnn {name}"],)
    runner.arena.reserve(*runner.program.most)
    values = {
        one: normal(3 + place, *plan.buffers[one].shape) for place, one in enumerate(plan.inputs)
    }
    found = runner(**{one: stored(array, dtype) for one, array in values.items()})["y"]
    real = {one: rounded(array, dtype) for one, array in values.items()}
    wanted = conv.reference(
        real["x"][..., wider:],
        rounded(plan.constants["w"], dtype),
        stride=stride,
        padding=padding,
        bias=rounded(plan.constants["b"], dtype) if bias else None,
        vector=real.get("v"),
        residual=real.get("r"),
    )
    got = widened(found, dtype).astype(np.float64)[..., wider:]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=ERROR[dtype] * np.abs(wanted).max())
    untouched = found[..., :wider].copy().view(np.uint16)
    assert (untouched == 0xFFFF).all()  # between the output's pixels
    assert fake.ran == [name]
    library.close()
    library.close()
    assert not fake.handles


@pytest.mark.parametrize(
    "what",
    [
        {"dtype": "float32"},
        {"activation": "silu"},
        {"upsampled": (8, 10)},
        {"sources": 2},
        {"residual": "in place"},
        {"filters": 24},  # what the library has nothing for
    ],
    ids=str,
)
def test_what_it_cannot_do_or_may_not_stays_ours(what: dict[str, Any]) -> None:
    gpu, fake, library = opened()
    program = Program(one_convolution(**what), chip_of(gpu, (library,)))
    assert not of_library(program)
    assert program.ways[0].variants
    assert fake.asked == ("filters" in what)


def test_over_the_residual_is_measured_by_itself() -> None:
    gpu, _, library = opened()
    chip = chip_of(gpu, (library,))
    over, apart = (
        Program(one_convolution(residual=where), chip).options[0] for where in ("in place", "apart")
    )
    assert over.sizes != apart.sizes
    assert len(apart.ways) > len(over.ways)


def test_equal_sizes_share_a_graph_and_nothing_is_built_unasked() -> None:
    gpu, fake, library = opened()
    plan = one_convolution()
    chip = chip_of(gpu, (library,))
    first, second = Program(plan, chip), Program(plan, chip)
    assert [way.name for way in of_library(first)] == [way.name for way in of_library(second)]
    assert fake.asked == 1
    (planned,) = library._planned.values()
    assert planned is not None
    assert not planned.built
    assert first.ways[0].variants  # unmeasured it is never taken
    assert not fake.ran


@pytest.mark.parametrize("name", REFUSING)
def test_a_plan_that_is_refused_fails_before_it_runs(name: str) -> None:
    gpu, fake, library = opened()
    runner = Runner(one_convolution(), gpu, (library,))
    (way,) = (way for way in of_library(runner.program) if way.name == f"cudnn {name}")
    with pytest.raises(LibraryFailed, match=r"a convolution: cudnn-92600: .*without --libraries"):
        way.calls(runner.places())
    assert not fake.ran


@pytest.mark.parametrize("failing", [False, True])
def test_measured_kept_and_taken_where_it_is_fastest(tmp_path: Path, failing: bool) -> None:
    plan = one_convolution(size=(12, 12), channels=32, filters=32, bias=True)
    gpu, fake, library = opened(failing=failing)
    device = gpu.device
    runner = Runner(plan, gpu, (library,))
    x = stored(normal(3, 1, 12, 12, 32), "float16")
    before = runner(x=x)["y"]
    runner.arena.reserve(*runner.program.most)
    tactics = Tactics(tmp_path, key_of(device, (library,)))
    places, stream = runner.places(), runner.stream
    arguments = {"device": device, "stream": stream, "kernel": gpu.kernel}
    assert measure(runner.program, places, tactics, **arguments) == 1
    tactics.save()
    again = Tactics(tmp_path, key_of(device, (library,)))
    chosen = again.choose(runner.program.options[0])
    # NumPy is faster than a kernel emulated on the host, so that it stands for a faster library.
    assert (not chosen.variants) == (not failing)
    assert failing or chosen.name.removeprefix("cudnn ") in RUNNING
    fake.ran.clear()
    runner.program.ways = (chosen,)
    error = ERROR["float16"] * np.abs(before).max()
    np.testing.assert_allclose(runner(x=x)["y"], before, rtol=0, atol=error)
    assert bool(fake.ran) == (not failing)
    assert len(Tactics(tmp_path, key_of(device))) == 0


def test_another_version_of_the_library_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, _, library = opened()
    options = Program(one_convolution(), chip_of(gpu, (library,))).options
    tactics = Tactics(tmp_path, key_of(gpu.device, (library,)))
    tactics.put(options[0], options[0].ways[-1], 1.0)
    tactics.save()
    monkeypatch.setattr(fake_cudnn, "VERSION", 92700)
    newer = Tactics(tmp_path, key_of(gpu.device, (opened()[2],)))
    assert len(newer) == 0
    assert "libraries" in newer.rebuilt[0]


def frontend() -> Any:
    """The real frontend, which imports without a GPU and without the library."""
    try:
        import cudnn
    except ImportError as error:
        pytest.skip(f"nvidia-cudnn-frontend is not installed ({error}): 22 MB, not in dev")
    return cudnn


EPILOGUES = [
    Epilogue(),
    Epilogue(bias=True),
    Epilogue(bias=True, vector=True),
    Epilogue(bias=True, vector=True, residual=True),
]


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=range(4))
@pytest.mark.parametrize("dtype", cudnn_ways.TYPES)
@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (0, 0, 1, 1), (2, 0, 1, 3)])
def test_the_real_frontend_takes_the_graph(
    epilogue: Epilogue, dtype: str, padding: tuple[int, int, int, int]
) -> None:
    api = frontend()
    sizes = conv.Convolution(
        dtype=dtype,
        images=2,
        height=9,
        width=12,
        channels=16,
        filters=24,
        kernel=(3, 3),
        stride=2,
        padding=padding,
        first_stride=32,
        output_stride=48,
        epilogue=epilogue,
    )
    graph = graph_of(api, sizes)
    tensors = {tensor.uid: tensor for tensor in graph.tensors.values()}
    adds = epilogue.bias + epilogue.vector + epilogue.residual
    assert len(graph.nodes) == 1 + adds
    source, filters, output = (
        tensors[uid] for uid in (cudnn_ways.SOURCE, cudnn_ways.FILTERS, cudnn_ways.OUTPUT)
    )
    height, width = sizes.output_size
    assert (source.dim, source.stride) == ([2, 16, 9, 12], [9 * 12 * 32, 1, 12 * 32, 32])
    assert (filters.dim, filters.stride) == ([24, 16, 3, 3], [144, 1, 48, 16])
    assert output.dim == [2, 24, height, width]
    assert output.stride == [height * width * 48, 1, width * 48, 48]
    named = [tensor for tensor in tensors.values() if not tensor.is_virtual]
    assert len(named) == 3 + adds
    assert {tensor.data_type for tensor in named} == {
        getattr(api.data_type, cudnn_ways.TYPES[dtype])
    }
    (convolution, *sums) = graph.nodes
    (reckoned,) = convolution.outputs.values()
    assert reckoned.dim == output.dim  # what the frontend makes of padding and stride
    assert all(one.uid in tensors for node in sums for one in node.inputs.values())


def test_the_real_frontend_refuses_a_name_it_does_not_know() -> None:
    api = frontend()

    class Wrong:
        data_type = api.data_type

        def pygraph(self, **how: Any) -> Any:
            graph = api.pygraph(**how)
            real = graph.conv_fprop
            graph.conv_fprop = lambda **given: real(**given, padding_before=[1, 1])
            return graph

    with pytest.raises(TypeError):
        graph_of(Wrong(), conv.Convolution(**SIZES))


METHODS = [
    name
    for name, _ in inspect.getmembers(fake_cudnn.Graph, inspect.isfunction)
    if not name.startswith("_") and name not in ("add", "conv_fprop")  # built above
]


@pytest.mark.parametrize("name", METHODS)
def test_the_stand_in_has_the_signatures_of_the_real_graph(name: str) -> None:
    real = inspect.signature(getattr(frontend().pygraph, name)).parameters
    found = list(inspect.signature(getattr(fake_cudnn.Graph, name)).parameters)
    if name == "tensor":  # called by names alone
        assert set(found) <= set(real)
    else:
        assert found == list(real)[: len(found)]


def test_the_stand_in_has_the_names_of_the_real_module() -> None:
    api = frontend()
    for name in ("create_handle", "destroy_handle", "set_stream"):
        found = list(inspect.signature(getattr(FakeCudnn, name)).parameters)[1:]
        assert found == list(inspect.signature(getattr(api, name)).parameters)
    assert "backend_version() -> int" in api.backend_version.__doc__
    wanted = set(inspect.signature(FakeCudnn.pygraph).parameters) - {"self"}
    assert wanted <= set(inspect.signature(api.pygraph).parameters)
    for kind in ("data_type", "heur_mode", "numerical_note"):
        for member in getattr(FakeCudnn, kind):
            assert hasattr(getattr(api, kind), member.name)
    assert issubclass(api.cudnnGraphNotSupportedError, Exception)
    assert all(hasattr(api.numerical_note, name) for name in cudnn_ways.REFUSED)
    for name, _ in inspect.getmembers(fake_cudnn.Tensor, inspect.isfunction):
        assert hasattr(api.Tensor, name) or name.startswith("_")


def test_without_the_library_the_real_frontend_opens_nothing() -> None:
    api = frontend()
    try:
        api.backend_version()
    except RuntimeError:
        with pytest.raises(RuntimeError):
            Cudnn(api, simulated_gpu(arch=80).device)
    else:
        pytest.skip("libcudnn is here")


def test_one_source_is_told_from_two() -> None:
    _, _, library = opened()
    (operation,) = one_convolution().operations
    sizes = conv.Convolution(**SIZES | {"channels": 16, "filters": 16})
    assert library.ways(operation, sizes)
    assert not library.ways(operation, replace(sizes, first_channels=8, first_stride=8))
    assert not library.ways(operation, object())
