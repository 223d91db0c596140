"""Views of buffers, turned and cut as NumPy does it: by arithmetic on strides, with no copy."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from diffusion_rt.engines.native.plan import View


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def permuted(view: View, order: Sequence[int]) -> View:
    """Its dimensions in another order."""
    return replace(
        view,
        shape=tuple(view.shape[axis] for axis in order),
        strides=tuple(view.strides[axis] for axis in order),
    )


def narrowed(view: View, axis: int, start: int, length: int) -> View:
    """`length` of one dimension, from `start` on."""
    shape = (*view.shape[:axis], length, *view.shape[axis + 1 :])
    return replace(view, shape=shape, offset=view.offset + start * view.strides[axis])


def reshaped(view: View, shape: Sequence[int]) -> View | None:
    """The same elements in the same order under another shape; None where strides cannot say it."""
    shape = tuple(shape)
    if prod(shape) != prod(view.shape):
        return None
    if prod(shape) == 0:
        return replace(view, shape=shape, strides=contiguous(shape))
    # Dimensions of 1 say nothing; the others are matched group by group of equal product.
    old = [(n, s) for n, s in zip(view.shape, view.strides, strict=True) if n != 1]
    new = [axis for axis, n in enumerate(shape) if n != 1]
    strides = [1] * len(shape)
    i = j = 0
    while i < len(old):
        count, k = old[i][0], i + 1
        wanted, m = shape[new[j]], j + 1
        while count != wanted:
            if count < wanted:
                count, k = count * old[k][0], k + 1
            else:
                wanted, m = wanted * shape[new[m]], m + 1
        if any(old[a][1] != old[a + 1][0] * old[a + 1][1] for a in range(i, k - 1)):
            return None
        stride = old[k - 1][1]
        for axis in reversed(new[j:m]):
            strides[axis] = stride
            stride *= shape[axis]
        i, j = k, m
    return replace(view, shape=shape, strides=_tidy(shape, strides))


def _tidy(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """A dimension of 1 gets the stride that it would have in a row-major array."""
    found = list(strides)
    for axis in reversed(range(len(shape))):
        if shape[axis] == 1:
            last = axis + 1 == len(shape)
            found[axis] = 1 if last else found[axis + 1] * shape[axis + 1]
    return tuple(found)


def rows(view: View) -> View | None:
    """[..., K] as [M, K] with the last stride 1; None where that would need a copy."""
    if not view.shape:
        return None
    found = reshaped(view, (prod(view.shape[:-1]), view.shape[-1]))
    return found if found is not None and found.strides[1] == 1 else None


def pixels(view: View) -> View | None:
    """[images, C, height, width] as [images, height, width, C], pixels one after the other.

    None where the buffer does not hold it so.
    """
    if len(view.shape) != 4:
        return None
    turned = permuted(view, (0, 2, 3, 1))
    flat = rows(turned)
    return None if flat is None else reshaped(flat, turned.shape)


def points(view: View) -> View | None:
    """[images, C, …] as [images, pixels, C], pixels one after the other; None as for `pixels`."""
    if len(view.shape) < 3:
        return None
    turned = permuted(view, (0, *range(2, len(view.shape)), 1))
    flat = rows(turned)
    if flat is None:
        return None
    return reshaped(flat, (view.shape[0], prod(view.shape[2:]), view.shape[1]))


def broadcast(view: View, shape: Sequence[int]) -> View | None:
    """Repeated to a shape by strides of 0, as NumPy does; None where it does not fit."""
    missing = len(shape) - len(view.shape)
    if missing < 0:
        return None
    strides = [0] * missing
    for n, stride, wanted in zip(view.shape, view.strides, shape[missing:], strict=True):
        if n not in (1, wanted):
            return None
        strides.append(0 if n == 1 != wanted else stride)
    return replace(view, shape=tuple(shape), strides=tuple(strides))


def order_of(view: View) -> tuple[int, ...]:
    """The order of dimensions, from the largest stride to the smallest, in which memory has it."""
    axes = range(len(view.shape))
    return tuple(sorted(axes, key=lambda axis: (-view.strides[axis], axis)))


def inverse(order: Sequence[int]) -> tuple[int, ...]:
    """The order that undoes `order`."""
    return tuple(sorted(range(len(order)), key=lambda axis: order[axis]))
