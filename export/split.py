"""One ONNX graph cut into parts by what its values depend on.

Each part is given inputs of the whole that only it and later parts may read. A node belongs to the
first part that can compute it; what a later part needs of it crosses over, an output here and an
input of the same name there. Put together again, the parts are the whole.

Values count, not shapes: an exporter asks for the batch size of whichever input it met first, so
`Shape` of an input that a part does not have is asked of one that it has. What depends on no input
(constants, sizes, the transpose of a weight) is copied into each part that uses it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

# A view costs nothing and says how its reader wants a value: the value crosses, not the view.
VIEWS = ("Unsqueeze", "Squeeze", "Identity")


def split(
    whole: ir.Model,
    parts: Mapping[str, Sequence[str]],
    name_of: Callable[[ir.Value], str],
) -> dict[str, ir.Model]:
    """The parts of `whole`, in order.

    `parts` gives each part the inputs it reads besides what earlier parts hand over; inputs of
    `whole` that no part names are parameters, and follow the others where they are used. `name_of`
    names a value that crosses; it is renamed in `whole` too. Raises ValueError where two such
    values have one name, where a part asks for a size that none of its inputs has, and where it
    would have nothing to do.
    """
    graph = whole.graph
    order = {node: place for place, node in enumerate(graph)}
    inputs = {value.name: value for value in graph.inputs}
    reads = [[inputs[name] for name in names] for names in parts.values()]
    home = _homes(graph, reads)

    wanted: list[list[ir.Value]] = [[] for _ in reads]
    for output in graph.outputs:
        wanted[home[output]].append(output)
    handed: list[list[ir.Value]] = [[] for _ in reads]
    for part in reversed(range(len(reads))):
        handed[part] = _handed(wanted[part], part, home)
        for value in handed[part]:
            if value.producer() is not None and value not in wanted[home[value]]:
                wanted[home[value]].append(value)

    def place(value: ir.Value) -> tuple[int, int]:
        maker = value.producer()
        return (order[maker], value.index() or 0) if maker is not None else (-1, 0)

    crossing = {value for values in handed for value in values if value.producer() is not None}
    for value in crossing - set(graph.outputs):
        value.name = name_of(value)
    if len({value.name for value in crossing}) < len(crossing):
        raise ValueError("two values that cross from part to part have the same name")

    found = {}
    for part, name in enumerate(parts):
        given = [*reads[part], *sorted(handed[part], key=place)]
        others = [value for value in graph.inputs if value not in given]
        if not wanted[part]:
            raise ValueError(f"the part {name} gives nothing that is wanted")
        outputs = sorted(wanted[part], key=place)
        cut = ir.convenience.extract(graph, [*given, *others], outputs)
        constants = sorted(cut.initializers.items())  # extract lists them in any order
        cut.initializers.clear()
        cut.initializers.update(constants)
        _ask_sizes_of(cut, cut.inputs[: len(given)])
        cut.inputs[len(given) :] = [v for v in cut.inputs[len(given) :] if v.uses()]
        found[name] = ir.Model(cut, ir_version=whole.ir_version)
    return found


def _homes(graph: ir.Graph, reads: Sequence[Iterable[ir.Value]]) -> dict[ir.Value, int]:
    """The first part that can have each value; none for what depends on no input's values."""
    home = {value: part for part, values in enumerate(reads) for value in values}
    for node in graph:
        if not _asks_an_input(node):
            homes = [home[value] for value in node.inputs if value in home]
            home |= dict.fromkeys(node.outputs, max(homes)) if homes else {}
    return home


def _asks_an_input(node: ir.Node) -> bool:
    return (
        node.op_type == "Shape" and node.inputs[0] is not None and node.inputs[0].is_graph_input()
    )


def _handed(wanted: Iterable[ir.Value], part: int, home: Mapping[ir.Value, int]) -> list[ir.Value]:
    """The values of earlier parts that `wanted` needs."""
    found, seen, pending = [], set(), list(wanted)
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        maker = value.producer()
        if home.get(value, part) != part and (maker is None or maker.op_type not in VIEWS):
            found.append(value)
        elif maker is not None and not _asks_an_input(maker):
            pending += [source for source in maker.inputs if source is not None]
    return found


def _ask_sizes_of(graph: ir.Graph, given: Sequence[ir.Value]) -> None:
    """Let each `Shape` of another input ask one of `given` that has the same symbol."""
    for node in list(graph):
        if not _asks_an_input(node) or node.inputs[0] in given:
            continue
        root, output = node.inputs[0], node.outputs[0]
        assert root is not None
        assert root.shape is not None
        start = node.attributes.get_int("start", 0)
        end = node.attributes.get_int("end", len(root.shape))
        made = [_size(dim, given) for dim in root.shape[start:end]]
        if len(made) > 1:
            made.append(ir.node("Concat", [size.outputs[0] for size in made], {"axis": 0}))
        made[-1].outputs[0].type, made[-1].outputs[0].shape = output.type, output.shape
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], made, [output], [made[-1].outputs[0]]
        )


def _size(dim: int | ir.SymbolicDim, given: Iterable[ir.Value]) -> ir.Node:
    if isinstance(dim, int):
        return ir.node("Constant", [], {"value": ir.tensor(np.array([dim], dtype=np.int64))})
    for value in given:
        for axis, other in enumerate(value.shape or ()):
            if other == dim:
                return ir.node("Shape", [value], {"start": axis, "end": axis + 1})
    raise ValueError(f"no input of the part has the size {dim}")
