"""No two buffers that are needed at once share memory; what may be written in place is."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.engines.native.lower import plan_of
from diffusion_rt.engines.native.placement import in_place, place, spans
from diffusion_rt.engines.native.plan import (
    ALIGNMENT,
    Buffer,
    Copy,
    Elementwise,
    Epilogue,
    GroupNorm,
    Operation,
    Plan,
    Product,
    View,
)
from diffusion_rt.engines.native.schedule import shortcuts_first
from diffusion_rt.engines.spec import GRAPHS
from support.native_plans import graph_sizes

SHIPPED = Path(__file__).resolve().parents[3] / "runtime" / "models" / "shapes-xl"


def view(name: str, size: int) -> View:
    return View(name, "float16", (size,), (1,))


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Operation], dict[str, Buffer]]:
    """Copies and functions of random earlier buffers into new ones, some of equal size."""
    count = draw(st.integers(1, 24))
    sizes = draw(
        st.lists(st.sampled_from([1, 100, 128, 129, 5000]), min_size=count, max_size=count)
    )
    buffers = {"in": Buffer("in", "float16", (64,), "input")}
    operations: list[Operation] = []
    for number, size in enumerate(sizes):
        name = f"b{number}"
        earlier = list(buffers)
        buffers[name] = Buffer(name, "float16", (size,), "arena")
        source = draw(st.sampled_from(earlier))
        read, output = view(source, buffers[source].shape[0]), view(name, size)
        if draw(st.booleans()):
            operations.append(Copy(name=name, source=read, output=output))
        else:
            operations.append(
                Elementwise(name=name, function="silu", sources=(read,), scalars=(), output=output)
            )
    return operations, buffers


def overlapping(operations: list[Operation], buffers: dict[str, Buffer]) -> list[tuple[str, str]]:
    """Replayed operation by operation: pairs that are live together and share a byte."""
    live = spans(operations)
    arena = [buffer for buffer in buffers.values() if buffer.place == "arena"]
    found = set()
    for moment in range(len(operations)):
        now = [b for b in arena if live[b.name][0] <= moment <= live[b.name][1]]
        taken: dict[int, str] = {}
        for buffer in now:
            for byte in range(buffer.offset, buffer.offset + buffer.size):
                if taken.setdefault(byte, buffer.name) != buffer.name:
                    found.add((taken[byte], buffer.name))
    return sorted(found)


@settings(max_examples=80, deadline=None)
@given(programs())
def test_buffers_that_are_needed_at_once_lie_apart(
    program: tuple[list[Operation], dict[str, Buffer]],
) -> None:
    operations, buffers = program
    placed, peak = place(operations, buffers)
    assert overlapping(operations, placed) == []
    arena = [b for b in placed.values() if b.place == "arena"]
    assert all(b.offset % ALIGNMENT == 0 for b in arena)
    assert peak == max(b.offset + -(-b.size // ALIGNMENT) * ALIGNMENT for b in arena)
    live = spans(operations)
    floor = max(
        sum(b.size for b in arena if live[b.name][0] <= moment <= live[b.name][1])
        for moment in range(len(operations))
    )
    assert floor <= peak <= sum(-(-b.size // ALIGNMENT) * ALIGNMENT for b in arena)


def values(operations: list[Operation], buffers: dict[str, Buffer]) -> dict[str, object]:
    """What each operation writes, as the term that made it, memory shared as placed."""
    memory: dict[object, object] = {"input": "input"}
    made: dict[str, object] = {}

    def at(name: str) -> object:
        return "input" if name == "in" else buffers[name].offset

    for operation in operations:
        (source,) = operation.reads
        made[operation.name] = memory[at(operation.output.buffer)] = (
            operation.name,
            memory[at(source.buffer)],
        )
    return made


@settings(max_examples=80, deadline=None)
@given(programs())
def test_writing_in_place_changes_no_result(
    program: tuple[list[Operation], dict[str, Buffer]],
) -> None:
    """Each operation's result, as the term that made it, with memory as it is shared."""
    operations, buffers = program
    apart = {
        name: Buffer(name, b.dtype, b.shape, b.place, number * 1 << 20)
        for number, (name, b) in enumerate(buffers.items())
    }
    shared, left = in_place(operations, buffers)
    placed, _ = place(shared, left)
    assert values(shared, placed) == values(operations, apart)


def test_the_last_reader_writes_over_what_it_read() -> None:
    buffers = {n: Buffer(n, "float16", (64,), "arena") for n in ("a", "b", "c")}
    buffers["in"] = Buffer("in", "float16", (64,), "input")

    def silu(read: str, made: str) -> Elementwise:
        return Elementwise(
            name=made,
            function="silu",
            sources=(view(read, 64),),
            scalars=(),
            output=view(made, 64),
        )

    operations, left = in_place([silu("in", "a"), silu("a", "b"), silu("b", "c")], buffers)
    assert [o.output.buffer for o in operations] == ["a", "a", "a"]
    assert set(left) == {"in", "a"}
    operations, left = in_place([silu("in", "a"), silu("a", "b"), silu("a", "c")], buffers)
    assert [o.output.buffer for o in operations] == ["a", "b", "a"]  # b still needed a


def test_what_is_read_in_two_ways_is_not_written_over() -> None:
    """Another thread may still need it: x + W x, where x is source and residual."""
    shapes = {"in": (8, 8), "x": (8, 8), "y": (8, 8), "z": (8, 8)}
    buffers = {
        name: Buffer(name, "float16", shape, "input" if name == "in" else "arena")
        for name, shape in shapes.items()
    }

    def square(name: str) -> View:
        return View(name, "float16", (8, 8), (8, 1))

    def product(name: str, source: str, residual: str) -> Product:
        return Product(
            name=name,
            sources=(square(source),),
            weight="w",
            columns=8,
            image_rows=8,
            epilogue=Epilogue(residual=square(residual)),
            output=square(name),
        )

    first = Copy(name="x", source=square("in"), output=square("x"))
    operations, _ = in_place([first, product("y", "x", "x")], buffers)
    assert operations[1].output.buffer == "y"
    operations, _ = in_place([first, product("y", "in", "x")], buffers)
    assert operations[1].output.buffer == "x"
    assert operations[1].reads[1].buffer == "x"


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_buffers_of_a_real_plan_lie_apart(graph: str) -> None:
    plan = plan_of(open_model(SHIPPED), graph, graph_sizes(graph, 2, 20, 8, 12), "float16")
    live = spans(plan.operations)
    arena = [buffer for buffer in plan.buffers.values() if buffer.place == "arena"]
    for number, one in enumerate(arena):
        for other in arena[number + 1 :]:
            first, second = live[one.name], live[other.name]
            apart_in_time = first[1] < second[0] or second[1] < first[0]
            apart = one.offset + one.size <= other.offset or other.offset + other.size <= one.offset
            assert apart_in_time or apart, (one.name, other.name)
    assert all(b.offset + b.size <= plan.arena_size for b in arena)


def test_a_shortcut_comes_before_the_norm_that_reads_the_same() -> None:
    """Where its source is its own; a norm may then write over what it reads."""
    plan = plan_of(open_model(SHIPPED), "vae_decoder", {"batch": 1, "height": 8, "width": 8})
    names = [operation.name for operation in plan.operations]
    resnet = "decoder.up_blocks.2.resnets.0"
    shortcut = names.index(f"{resnet}.conv_shortcut")
    assert names[shortcut + 1] == f"{resnet}.norm1"
    norm = plan.operations[shortcut + 1]
    assert norm.output.buffer == norm.reads[0].buffer
    skips = plan_of(
        open_model(SHIPPED), "unet_step", {"batch": 1, "height": 8, "width": 8, "tokens": 7}
    )
    names = [operation.name for operation in skips.operations]
    resnet = "up_blocks.0.resnets.1"
    assert names.index(f"{resnet}.conv_shortcut") + 1 == names.index(f"{resnet}.norm1")


def test_a_shortcut_stays_where_its_source_changes_or_no_norm_reads_it() -> None:
    def product(name: str, source: str) -> Product:
        return Product(
            name=name,
            sources=(View(source, "float16", (8, 8), (8, 1)),),
            weight="w",
            columns=8,
            image_rows=8,
            epilogue=Epilogue(),
            output=View(name, "float16", (8, 8), (8, 1)),
        )

    def norm(name: str, source: str) -> GroupNorm:
        return GroupNorm(
            name=name,
            sources=(View(source, "float16", (1, 8, 8), (64, 8, 1)),),
            weight="w",
            bias="w",
            groups=1,
            epsilon=0.0,
            silu=False,
            output=View(name, "float16", (1, 8, 8), (64, 8, 1)),
        )

    first, half = product("x", "in"), norm("n", "x")
    late = Copy(name="late", source=view("in", 64), output=view("x", 64))  # fills x up
    cases: list[tuple[list[Operation], list[str]]] = [
        ([first, half, product("s", "x")], ["x", "s", "n"]),
        ([first, half, product("s", "n")], ["x", "n", "s"]),
        ([first, half, late, product("s", "x")], ["x", "n", "late", "s"]),
    ]
    for operations, order in cases:
        assert [operation.name for operation in shortcuts_first(operations)] == order


def peak_of_the_live(plan: Plan) -> int:
    live = spans(plan.operations)
    arena = [buffer for buffer in plan.buffers.values() if buffer.place == "arena"]
    return max(
        sum(b.size for b in arena if live[b.name][0] <= moment <= live[b.name][1])
        for moment in range(len(plan.operations))
    )


@pytest.mark.parametrize("graph", ["unet_step", "vae_decoder"])
def test_the_arena_is_hardly_larger_than_what_is_needed_at_once(graph: str) -> None:
    plan = plan_of(open_model(SHIPPED), graph, graph_sizes(graph, 2, 20, 32, 32), "float16")
    assert plan.arena_size <= 1.15 * peak_of_the_live(plan)
    assert plan.arena_size < plan.unshared_size / 3
