"""Where buffers lie in one arena, so that those which are not needed at once share memory."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from diffusion_rt.engines.native.plan import (
    ALIGNMENT,
    Buffer,
    Convolution,
    Elementwise,
    Epilogue,
    GroupNorm,
    LayerNorm,
    Operation,
    Product,
    View,
)

Span = tuple[int, int]  # the first and the last operation that touch a buffer


def spans(operations: Sequence[Operation]) -> dict[str, Span]:
    """For each buffer the first and the last operation that touch it."""
    found: dict[str, Span] = {}
    for number, operation in enumerate(operations):
        for view in (*operation.reads, operation.output):
            found[view.buffer] = (found.get(view.buffer, (number, 0))[0], number)
    return found


def in_place(
    operations: Sequence[Operation], buffers: Mapping[str, Buffer]
) -> tuple[list[Operation], dict[str, Buffer]]:
    """The same operations, written over what they read where nothing needs that any more.

    An epilogue may write over its residual, a function of one number over its source, a norm over
    its one source: each element is written by the thread that has read it, or after all were read.
    """
    live = spans(operations)
    renamed: dict[str, str] = {}
    for number, operation in enumerate(operations):
        old, output = _overwritten(operation), operation.output
        if old is None or old.buffer == output.buffer or not _alike(old, output):
            continue
        kept = renamed.get(old.buffer, old.buffer)
        before, after = buffers[old.buffer], buffers[output.buffer]
        if (
            before.place == after.place == "arena"
            and before.size == after.size
            and live[kept][1] == number
            and live[output.buffer][0] == number
            and [view.buffer for view in operation.reads].count(old.buffer) == 1
        ):
            renamed[output.buffer] = kept
            live[kept] = (live[kept][0], live[output.buffer][1])
    left = {name: buffer for name, buffer in buffers.items() if name not in renamed}
    return [_renamed(operation, renamed) for operation in operations], left


def _alike(left: View, right: View) -> bool:
    """Whether two views reach the same elements of their buffers."""
    return replace(left, buffer=right.buffer) == right


def _overwritten(operation: Operation) -> View | None:
    """What an operation reads and may write its output over."""
    if isinstance(operation, (Product, Convolution)):
        return operation.epilogue.residual
    if isinstance(operation, GroupNorm) and len(operation.sources) == 1:
        return operation.sources[0]
    if isinstance(operation, LayerNorm):
        return operation.source
    if isinstance(operation, Elementwise) and 0 not in operation.sources[0].strides:
        return operation.sources[0]
    return None


def _renamed(operation: Operation, names: Mapping[str, str]) -> Operation:
    """The operation with its buffers renamed."""

    def change(value: Any) -> Any:
        if isinstance(value, View):
            return replace(value, buffer=names.get(value.buffer, value.buffer))
        if isinstance(value, tuple):
            return tuple(change(one) for one in value)
        if isinstance(value, Epilogue):
            return replace(value, vector=change(value.vector), residual=change(value.residual))
        return value

    fields = operation.__dataclass_fields__
    return type(operation)(**{name: change(getattr(operation, name)) for name in fields})


def place(
    operations: Sequence[Operation], buffers: Mapping[str, Buffer]
) -> tuple[dict[str, Buffer], int]:
    """The buffers with their offsets in the arena, and the arena's bytes.

    Largest first, each as low as it fits among those that are needed at the same time (Pisarchyk
    and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020). A buffer that no
    operation touches is left out.
    """
    live = spans(operations)
    wanted = [
        buffer for name, buffer in buffers.items() if buffer.place == "arena" and name in live
    ]
    placed: list[tuple[int, int, Span]] = []  # offset, end, span; ordered by offset
    found = {name: buffer for name, buffer in buffers.items() if buffer.place != "arena"}
    peak = 0
    for buffer in sorted(wanted, key=lambda one: (-one.size, live[one.name])):
        size, span = _aligned(buffer.size), live[buffer.name]
        offset = 0
        for start, end, other in placed:
            if other[1] < span[0] or span[1] < other[0]:
                continue
            if start - offset >= size:
                break
            offset = max(offset, end)
        placed.append((offset, offset + size, span))
        placed.sort()
        found[buffer.name] = replace(buffer, offset=offset)
        peak = max(peak, offset + size)
    return found, peak


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
