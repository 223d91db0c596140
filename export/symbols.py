"""The sizes in a graph's shapes that have names."""

from collections.abc import Callable, Iterator

import onnx_ir as ir


def all_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Inputs, initializers and what every node gives."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def rename_symbols(graph: ir.Graph, renamed: Callable[[str], str]) -> None:
    """Give the symbols in all shapes the names that `renamed` says for the ones they have."""
    for value in all_values(graph):
        if value.shape is not None:
            value.shape = ir.Shape(
                [d if isinstance(d, int) else renamed(str(d.value)) for d in value.shape]
            )
