"""Arithmetic on strides reaches the same elements as NumPy's own."""

from dataclasses import replace
from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.engines.native.plan import View
from diffusion_rt.engines.native.views import (
    broadcast,
    contiguous,
    inverse,
    narrowed,
    order_of,
    permuted,
    pixels,
    points,
    reshaped,
    rows,
)

SIZES = st.sampled_from([1, 1, 2, 3, 4, 6])


def numbers(view: View) -> np.ndarray:
    memory = np.arange(100_000)[view.offset :]
    return np.lib.stride_tricks.as_strided(memory, view.shape, [8 * s for s in view.strides])


@st.composite
def views(draw: st.DrawFn) -> View:
    """Cut and turned out of a row-major array."""
    shape = tuple(draw(st.lists(SIZES, min_size=1, max_size=5)))
    view = View("b", "float32", shape, contiguous(shape))
    for axis in range(len(shape)):
        if draw(st.booleans()):
            start = draw(st.integers(0, shape[axis] - 1))
            view = narrowed(view, axis, start, draw(st.integers(1, shape[axis] - start)))
    return permuted(view, draw(st.permutations(range(len(shape)))))


@st.composite
def factored(draw: st.DrawFn, count: int) -> tuple[int, ...]:
    """A shape of so many elements."""
    sizes, left = [], count
    while left > 1 and draw(st.booleans()):
        size = draw(st.sampled_from([n for n in range(1, left + 1) if left % n == 0]))
        sizes.append(size)
        left //= size
    return (*sizes, left, *[1] * draw(st.integers(0, 2)))


@settings(max_examples=300, deadline=None)
@given(view=views(), data=st.data())
def test_a_reshape_is_numpys_or_none_where_numpy_copies(view: View, data: st.DataObject) -> None:
    shape = data.draw(factored(prod(view.shape)))
    found = reshaped(view, shape)
    array = numbers(view)
    try:
        wanted = array.view()
        wanted.shape = shape
    except AttributeError:
        wanted = None
    if wanted is None:
        assert found is None
    else:
        assert found is not None
        assert np.array_equal(numbers(found), wanted)


@settings(max_examples=100, deadline=None)
@given(view=views(), data=st.data())
def test_an_order_is_undone_by_its_inverse(view: View, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(view.shape))))
    assert np.array_equal(numbers(permuted(view, order)), numbers(view).transpose(order))
    assert permuted(permuted(view, order), inverse(order)) == view
    steps = permuted(view, order_of(view)).strides
    assert list(steps) == sorted(steps, reverse=True)


@settings(max_examples=100, deadline=None)
@given(view=views(), data=st.data())
def test_rows_are_the_elements_in_order_with_the_last_next_to_each_other(
    view: View, data: st.DataObject
) -> None:
    found = rows(view)
    if found is not None:
        assert found.strides[1] == 1
        assert np.array_equal(numbers(found).reshape(-1), numbers(view).reshape(-1))


def test_pictures_that_lie_by_channel_are_pixels_without_a_copy() -> None:
    memory = View("b", "float16", (2, 5, 7, 24), contiguous((2, 5, 7, 24)))
    picture = narrowed(permuted(memory, (0, 3, 1, 2)), 1, 8, 16)
    found, flat = pixels(picture), points(picture)
    assert found is not None
    assert flat is not None
    assert (found.shape, found.strides, found.offset) == ((2, 5, 7, 16), (840, 168, 24, 1), 8)
    assert (flat.shape, flat.strides) == ((2, 35, 16), (840, 24, 1))
    assert pixels(View("b", "float16", (2, 16, 5, 7), contiguous((2, 16, 5, 7)))) is None
    assert points(View("b", "float16", (2, 16, 35), contiguous((2, 16, 35)))) is None


@settings(max_examples=100, deadline=None)
@given(view=views(), data=st.data())
def test_repeating_is_numpys(view: View, data: st.DataObject) -> None:
    grown = [data.draw(st.sampled_from([3, 5])) if n == 1 else n for n in view.shape]
    shape = tuple([2] * data.draw(st.integers(0, 2)) + grown)
    found = broadcast(view, shape)
    assert found is not None
    assert np.array_equal(numbers(found), np.broadcast_to(numbers(view), shape))
    assert broadcast(replace(view, shape=(7, *view.shape), strides=(0, *view.strides)), ()) is None
