"""`elementwise` against its reference, on the host: functions, types, strides."""

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.kernels import elementwise
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.driver import Misuse
from diffusion_rt.kernels.elementwise import FUNCTIONS, TYPES, Elementwise, Function, Strided
from support.kernel_bench import KernelBench
from support.products import read, rounded, storage, stored

Array = NDArray[Any]
ONE_AND_EIGHT: dict[str, KernelBench] = {}


def bench_of(variant: str) -> KernelBench:
    if variant not in ONE_AND_EIGHT:
        ONE_AND_EIGHT[variant] = KernelBench([CATALOGUE[variant]])
    return ONE_AND_EIGHT[variant]


def elements(array: Strided, shape: tuple[int, ...]) -> Array:
    """Where each element of an array lies in its buffer."""
    places = np.full(shape, array.offset)
    for axis, (size, stride) in enumerate(zip(shape, array.strides, strict=True)):
        places += np.arange(size).reshape(-1, *[1] * (len(shape) - axis - 1)) * stride
    return places


def run(of: Elementwise, values: list[Array]) -> Array:
    """The kernel over buffers that hold NaN wherever the arrays do not reach."""
    bench = bench_of(of.variant)
    addresses = []
    for array, given_values in zip(of.sources, values, strict=True):
        kind = storage(array.dtype)
        places = elements(array, given_values.shape)
        buffer = np.full(places.max() + 9, 0xFFFF if kind == "u2" else np.nan, kind)
        buffer[places] = stored(given_values, array.dtype)
        addresses.append(bench.put(buffer).address + array.offset * buffer.itemsize)
    kind = storage(of.output.dtype)
    places = elements(of.output, of.shape)
    output = bench.poisoned([places.max() + 9], kind)
    start = output.address + of.output.offset * np.dtype(kind).itemsize
    second = addresses[1] if len(addresses) == 2 else 0
    arguments = of.arguments(first=addresses[0], second=second, output=start)
    bench.run("elementwise", of.launch, *arguments)
    got = read(bench.get(output, [places.max() + 9], kind), of.output.dtype)
    beside = np.ones(len(got), bool)
    beside[places] = False
    assert np.isnan(got[beside]).all()
    bench.clear()
    return got[places]


def dense(dtype: str, shape: tuple[int, ...]) -> Strided:
    """Elements that follow one another."""
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    return Strided(dtype, tuple(strides))


@pytest.mark.parametrize("shape", [(3, 40), (1, 7)], ids=["vectors", "single"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions(function: Function, dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    sources = 2 if function in ("add", "multiply") else 1
    scalars = {"clip": (-0.5, 1.5), "multiply": (0.75,)}.get(function, ())
    values = [rounded(3 * rng.normal(size=shape), dtype) for _ in range(sources)]
    array = dense(dtype, shape)
    of = Elementwise(
        function=function, shape=shape, sources=(array,) * sources, output=array, scalars=scalars
    )
    truth = elementwise.reference(function, *values, scalars=scalars)
    plain = rounded(truth, dtype)
    # The float32 of an activation: some roundings of exp and erf, each of half a unit.
    slack = np.abs(truth).max() * 2.0**-22
    assert np.abs(run(of, values) - truth).max() <= np.abs(plain - truth).max() + slack


@pytest.mark.parametrize("source", TYPES)
@pytest.mark.parametrize("target", TYPES)
@pytest.mark.parametrize("columns", [16, 5])
def test_casts_round_to_nearest(source: str, target: str, columns: int) -> None:
    values = rounded(np.random.default_rng(2).normal(size=(3, columns)), source)
    shape = values.shape
    of = Elementwise(
        function="copy", shape=shape, sources=(dense(source, shape),), output=dense(target, shape)
    )
    np.testing.assert_array_equal(run(of, [values]), rounded(values, target))


def test_nchw_to_nhwc_with_zeros_for_the_missing_channels() -> None:
    """A latent of four channels as the first convolution wants it, and back."""
    latent = np.random.default_rng(3).normal(size=(2, 4, 5, 6)).astype("f4")
    images, channels, height, width = latent.shape
    pixels = latent.transpose(0, 2, 3, 1)
    as_pixels = Strided("float32", (channels * height * width, width, 1, height * width))
    of = Elementwise(
        function="copy",
        shape=(images, height, width, 8),
        sources=(as_pixels,),
        output=dense("float16", (images, height, width, 8)),
        valid=channels,
    )
    assert of.variant == "elementwise_1"
    got = run(of, [pixels])
    np.testing.assert_array_equal(got[..., :4], rounded(pixels, "float16"))
    assert not got[..., 4:].any()
    back = Elementwise(
        function="copy",
        shape=latent.shape,
        sources=(Strided("float16", (height * width * 8, 1, width * 8, 8)),),
        output=dense("float32", latent.shape),
    )
    np.testing.assert_array_equal(run(back, [latent]), rounded(latent, "float16"))


def test_a_slice_of_a_wider_buffer_goes_by_vectors() -> None:
    values = rounded(np.random.default_rng(4).normal(size=(6, 24)), "float16")
    wide = Strided("float16", (40, 1), offset=8)
    of = Elementwise(
        function="copy", shape=(6, 32), sources=(wide,), output=Strided("float16", (64, 1), 16),
        valid=24,
    )  # fmt: skip
    assert of.variant == "elementwise_8"
    got = run(of, [values])
    np.testing.assert_array_equal(got[:, :24], values)
    assert not got[:, 24:].any()


def test_a_repeated_element_and_a_repeated_row() -> None:
    rng = np.random.default_rng(5)
    values, row, one = rng.normal(size=(3, 16)), rng.normal(size=16), rng.normal()
    for strides, other in (((0, 1), row), ((0, 0), one)):
        sources = (dense("float32", (3, 16)), Strided("float32", strides))
        given_values = [values.astype("f4"), np.broadcast_to(other, (3, 16)).astype("f4")]
        of = Elementwise(function="add", shape=(3, 16), sources=sources, output=sources[0])
        assert of.variant == "elementwise_8"
        np.testing.assert_array_equal(run(of, given_values), given_values[0] + given_values[1])


def test_clip_keeps_nan() -> None:
    """What went wrong before must be seen after."""
    values = np.array([[np.nan, -9.0, 9.0, 0.5]], "f4")
    array = dense("float32", (1, 4))
    of = Elementwise(
        function="clip", shape=(1, 4), sources=(array,), output=array, scalars=(-1.0, 1.0)
    )
    np.testing.assert_array_equal(run(of, [values]), [[np.nan, -1, 1, 0.5]])


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    last=st.integers(1, 17),
    order=st.permutations(range(4)),
    gap=st.integers(0, 8),
    source=st.sampled_from(TYPES),
    target=st.sampled_from(TYPES),
)
@settings(max_examples=60, deadline=None)
def test_any_order_of_dimensions(
    shape: tuple[int, ...], last: int, order: list[int], gap: int, source: str, target: str
) -> None:
    """From strides of any order, with gaps, to dense ones."""
    whole = (*shape, last)
    strides, step = [0] * len(whole), 1
    for axis in (axis for axis in order if axis < len(whole)):
        strides[axis] = step
        step = step * whole[axis] + gap
    values = rounded(np.random.default_rng(6).normal(size=whole), source)
    of = Elementwise(
        function="copy",
        shape=whole,
        sources=(Strided(source, tuple(strides)),),
        output=dense(target, whole),
    )
    np.testing.assert_array_equal(run(of, [values]), rounded(values, target))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"function": "tanh"}, "tanh"),
        ({"function": "add", "sources": ()}, "0 arrays"),
        ({"sources": (dense("float32", (2, 8)),) * 2}, "copy of 2 arrays"),
        ({"function": "clip"}, "0 numbers, 2"),
        ({"scalars": (1.0,)}, "1 numbers, 0"),
        ({"shape": (1, 1, 1, 2, 8)}, "4 dimensions"),
        ({"shape": (0, 8)}, "dimensions"),
        ({"valid": 9}, "of 9"),
        ({"output": dense("int64", (2, 8))}, "int64"),
        ({"output": dense("float32", (8,))}, r"strides \(1,\)"),
        ({"output": Strided("float32", (2**31, 1))}, r"strides \(2147483648, 1\)"),
    ],
)
def test_what_it_does_not_take_is_refused(changes: dict[str, Any], said: str) -> None:
    array = dense("float32", (2, 8))
    usual: dict[str, Any] = {
        "function": "copy", "shape": (2, 8), "sources": (array,), "output": array
    }  # fmt: skip
    with pytest.raises(Misuse, match=said):
        Elementwise(**{**usual, **changes})


def test_functions_are_numbered_as_they_are_named() -> None:
    assert get_args(Function) == FUNCTIONS
