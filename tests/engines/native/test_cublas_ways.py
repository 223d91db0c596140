"""Products by cuBLASLt, over a library that stands for it, and against the real one's bindings."""

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.engines.native import cublas_ways
from diffusion_rt.engines.native import plan as p
from diffusion_rt.engines.native.cublas_ways import CublasLt
from diffusion_rt.engines.native.executor import Program
from diffusion_rt.engines.native.measure import measure
from diffusion_rt.engines.native.packing import to_bfloat16, widened
from diffusion_rt.engines.native.tactics import Tactics, key_of
from diffusion_rt.engines.native.ways import Way
from diffusion_rt.kernels import gemm
from diffusion_rt.kernels.driver.simulator import Simulator
from support import fake_cublas
from support.device_graphs import simulated_gpu
from support.fake_cublas import FakeCublasLt
from support.native_run import Runner, chip_of, normal
from support.plan_maker import PlanMaker, rounded

ERROR = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}  # of one rounding, twice


def one_product(
    dtype: p.Arithmetic = "float32",
    *,
    rows: int = 24,
    columns: int = 32,
    depth: int = 40,
    bias: bool = False,
    residual: str = "",  # "apart" or "in place"
    wider: int = 0,  # how much wider the buffers are that hold source and output
    **epilogue: Any,
) -> p.Plan:
    make = PlanMaker(dtype)
    x = make.buffer("x", (rows, depth + wider), "input")
    width = columns // 2 if epilogue.get("activation") == "geglu" else columns
    y = make.buffer("y", (rows, width + wider), "output")
    views = [
        p.View(one.buffer, dtype, (rows, size), one.strides, wider)
        for one, size in ((x, depth), (y, width))
    ]
    added = None
    if residual == "apart":
        added = make.buffer("r", (rows, width), "input")
    elif residual == "in place":
        added = views[1]
    weight = make.weight("w", normal(1, columns, depth))
    make.operations = [
        p.Product(
            name="a product",
            sources=(views[0],),
            weight=weight,
            columns=columns,
            image_rows=rows,
            epilogue=p.Epilogue(
                bias=make.weight("b", normal(2, columns)) if bias else None,
                residual=added,
                **epilogue,
            ),
            output=views[1],
        )
    ]
    return make.plan()


def opened(**how: Any) -> tuple[Any, FakeCublasLt, CublasLt]:
    gpu = simulated_gpu(arch=80)
    assert isinstance(gpu.device, Simulator)
    fake = FakeCublasLt(gpu.device, **how)
    return gpu, fake, CublasLt(fake, gpu.device)


def of_library(program: Program) -> list[Way]:
    """The library's ways to run the only operation."""
    (found,) = program.options
    return [way for way in found.ways if not way.variants]


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    rows=st.integers(1, 40),
    columns=st.integers(1, 4).map(lambda n: 16 * n),
    depth=st.integers(1, 8).map(lambda n: 8 * n),
    bias=st.booleans(),
    residual=st.sampled_from(["", "apart"]),
    wider=st.sampled_from([0, 8, 24]),
    number=st.integers(0, 1),
)
def test_a_product_is_the_reference(
    dtype: Any,
    rows: int,
    columns: int,
    depth: int,
    bias: bool,
    residual: str,
    wider: int,
    number: int,
) -> None:
    plan = one_product(
        dtype, rows=rows, columns=columns, depth=depth, bias=bias, residual=residual, wider=wider
    )
    gpu, fake, library = opened()
    runner = Runner(plan, gpu, (library,))
    ways = of_library(runner.program)
    assert len(ways) == 2  # of three, the last was not supported
    runner.program.ways = (ways[number],)
    runner.arena.reserve(*runner.program.most)
    x, r = normal(3, rows, depth + wider), normal(4, rows, columns)
    inputs = {"x": stored(x, dtype)} | ({"r": stored(r, dtype)} if residual else {})
    found = real(runner(**inputs)["y"], dtype)[:, wider:]
    wanted = gemm.reference(
        rounded(x, dtype)[:, wider:],
        rounded(plan.constants["w"], dtype),
        bias=rounded(plan.constants["b"], dtype) if bias else None,
        residual=rounded(r, dtype) if residual else None,
    )
    np.testing.assert_allclose(found, wanted, rtol=0, atol=ERROR[dtype] * np.abs(wanted).max())
    assert fake.ran == [number]
    library.close()
    assert not fake.made


def stored(values: Any, dtype: str) -> Any:
    return to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)


def real(values: Any, dtype: str) -> Any:
    return widened(values, dtype).astype(np.float64)


def test_the_residual_may_lie_where_the_output_does() -> None:
    plan = one_product(bias=True, residual="in place")
    gpu, _, library = opened()
    runner = Runner(plan, gpu, (library,))
    runner.program.ways = (of_library(runner.program)[0],)
    runner.arena.reserve(*runner.program.most)
    x = normal(3, 24, 40)
    assert np.isnan(runner(x=x)["y"]).all()  # the residual is what was there: poison


@pytest.mark.parametrize(
    "epilogue",
    [{"activation": "geglu"}, {"activation": "gelu"}, {"activation": "silu"}],
    ids=lambda one: one["activation"],
)
def test_what_it_cannot_do_stays_ours(epilogue: dict[str, Any]) -> None:
    gpu, _, library = opened()
    program = Program(one_product(**epilogue), chip_of(gpu, (library,)))
    assert not of_library(program)


def test_two_sources_or_a_vector_stay_ours() -> None:
    plan = one_product()
    (operation,) = plan.operations
    assert isinstance(operation, p.Product)
    _, _, library = opened()
    sizes = gemm.Product(dtype="float32", rows=24, columns=32, depth=40)
    assert library.ways(operation, sizes)
    assert not library.ways(operation, replace(sizes, first_depth=16, second_stride=24))
    with_vector = replace(sizes.epilogue, vector=True)
    assert not library.ways(operation, replace(sizes, epilogue=with_vector))


def test_what_the_library_has_nothing_for_stays_ours() -> None:
    gpu, _, library = opened()
    program = Program(one_product(columns=24), chip_of(gpu, (library,)))
    assert not of_library(program)


def test_unmeasured_it_is_never_taken() -> None:
    gpu, fake, library = opened()
    program = Program(one_product(), chip_of(gpu, (library,)))
    assert program.ways[0].variants
    assert not fake.ran


@pytest.mark.parametrize("failing", [False, True])
def test_measured_kept_and_taken_where_it_is_fastest(tmp_path: Path, failing: bool) -> None:
    plan = one_product(rows=200, columns=64, depth=256, bias=True)
    gpu, fake, library = opened(failing=failing)
    device = gpu.device
    runner = Runner(plan, gpu, (library,))
    x = normal(3, 200, 256)
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
    runner.program.ways = (chosen,)
    np.testing.assert_allclose(runner(x=x)["y"], before, rtol=0, atol=1e-4)
    assert bool(fake.ran) == (not failing)
    without = Tactics(tmp_path, key_of(device))
    assert len(without) == 0
    assert without.path != again.path


def test_another_version_of_the_library_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, _, library = opened()
    options = Program(one_product(), chip_of(gpu, (library,))).options
    tactics = Tactics(tmp_path, key_of(gpu.device, (library,)))
    tactics.put(options[0], options[0].ways[-1], 1.0)
    tactics.save()
    monkeypatch.setattr(fake_cublas, "VERSION", 130400)
    newer = Tactics(tmp_path, key_of(gpu.device, (CublasLt(FakeCublasLt(gpu.device), gpu.device),)))
    assert len(newer) == 0
    assert "libraries" in newer.rebuilt[0]


def bindings() -> Any:
    """nvmath-python's bindings, which import without a GPU and without the library."""
    try:
        from nvmath.bindings import cublasLt
    except ImportError as error:
        pytest.skip(f"nvmath-python is not installed ({error}): 39 MB with cuda-core, not in dev")
    return cublasLt


FUNCTIONS = [
    name
    for name, _ in inspect.getmembers(FakeCublasLt, inspect.isfunction)
    if not name.startswith("_")
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_stand_in_has_the_signatures_of_the_real_bindings(name: str) -> None:
    signature = (getattr(bindings(), name).__doc__ or "").split("\n")[0]
    matched = re.fullmatch(rf"{name}\((.*)\)(?: -> .*)?", signature)
    assert matched is not None
    wanted = [one.split()[-1] for one in matched[1].split(", ") if one]
    found = list(inspect.signature(getattr(FakeCublasLt, name)).parameters)[1:]
    assert found == wanted


def test_the_stand_in_has_the_numbers_of_the_real_bindings() -> None:
    real_one = bindings()
    numbers = (
        *fake_cublas.MatmulDescAttribute,
        *fake_cublas.MatmulPreferenceAttribute,
        *fake_cublas.Epilogue,
    )
    for member in numbers:
        assert int(getattr(real_one, type(member).__name__)[member.name]) == int(member)
    assert real_one.matmul_heuristic_result_dtype == fake_cublas.matmul_heuristic_result_dtype
    assert issubclass(real_one.cuBLASLtError, Exception)
    for kind, sizes in fake_cublas.SIZES.items():
        ask = f"get_matmul_{'desc' if kind == 'product' else kind}_attribute_dtype"
        for attribute, nbytes in sizes.items():
            assert np.dtype(getattr(real_one, ask)(attribute)).itemsize == nbytes
    from nvmath import CudaDataType
    from nvmath.bindings.cublas import ComputeType, Operation

    types = {"float32": "CUDA_R_32F", "float16": "CUDA_R_16F", "bfloat16": "CUDA_R_16BF"}
    assert {d: int(CudaDataType[n]) for d, n in types.items()} == cublas_ways.TYPES
    assert int(ComputeType.COMPUTE_32F) == cublas_ways.COMPUTE_FLOAT32
    assert int(Operation.T) == cublas_ways.TRANSPOSED
