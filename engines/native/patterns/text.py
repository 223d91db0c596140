"""What only text encoders have: tables of embeddings, and the row of the end token."""

import numpy as np

from diffusion_rt.engines.native.builder import Builder
from diffusion_rt.engines.native.graph import Node
from diffusion_rt.engines.native.plan import Embedding, SelectRow
from diffusion_rt.engines.native.values import Found, Looked, Matches, Positions
from diffusion_rt.engines.native.views import rows


def gather(builder: Builder, index: int, node: Node) -> None:
    """Gather of a table's rows: those of the ids, or the first ones, one for each token."""
    table = builder.parameter(node.inputs[0])
    if table is None or len(table.shape) != 2 or table.transposed:
        builder.refuse(node, "rows of something that is no table of parameters")
    known = builder.array(node.inputs[1])
    if known is not None:
        if not np.array_equal(known.reshape(-1), np.arange(known.size)):
            builder.refuse(node, "other rows than the first ones in order")
        if known.size > table.shape[0]:
            builder.refuse(node, f"{known.size} tokens, the table has {table.shape[0]}")
        builder.values[node.outputs[0]] = Positions(table)
        return
    ids = builder.tensor(node, node.inputs[1])
    if ids.dtype != "int64" or len(ids.shape) != 2:
        builder.refuse(node, "ids that are not [images, tokens] int64")
    builder.values[node.outputs[0]] = Looked(table, ids)


def embedding(builder: Builder, node: Node) -> bool:
    """Add of looked-up rows and positions; False where the node is another Add."""
    found = [builder.values.get(name) for name in node.inputs]
    looked = next((value for value in found if isinstance(value, Looked)), None)
    positions = next((value for value in found if isinstance(value, Positions)), None)
    if looked is None or positions is None:
        return False
    shape = builder.shape(node.outputs[0])
    width = shape[-1]
    if shape != (*looked.ids.shape, width) or positions.table.shape[1] != width:
        builder.refuse(node, "positions of another width than tokens")
    output = builder.target(
        node.outputs[0], shape, fit=lambda view: None if rows(view) is None else view
    )
    builder.emit(
        Embedding(
            name=looked.table.source.name.removesuffix(".weight"),
            ids=looked.ids,
            table=builder.weight([looked.table], "rows", looked.table.shape),
            positions=builder.weight([positions.table], "rows", positions.table.shape),
            output=output,
        )
    )
    builder.keep(node.outputs[0], output)
    return True


def equal(builder: Builder, index: int, node: Node) -> None:
    """Equal of ids and one token."""
    sides = [builder.array(name) for name in node.inputs]
    tokens = [side for side in sides if side is not None and side.size == 1]
    if len(tokens) != 1:
        builder.refuse(node, "two tensors; wants ids and one token")
    ids = builder.tensor(node, node.inputs[sides.index(None)])
    if ids.dtype != "int64" or len(ids.shape) != 2:
        builder.refuse(node, "ids that are not [images, tokens] int64")
    builder.values[node.outputs[0]] = Matches(ids, int(tokens[0].item()))


def arg_max(builder: Builder, index: int, node: Node) -> None:
    """ArgMax over tokens: the first match, or the first largest id."""
    value = builder.values.get(node.inputs[0])
    rank = len(builder.shape(node.inputs[0]))
    if node.whole("axis", 0) not in (-1, rank - 1) or node.whole("select_last_index", 0):
        builder.refuse(node, "another axis than the tokens, or the last of equals")
    if not isinstance(value, Matches):
        ids = builder.tensor(node, node.inputs[0])
        if ids.dtype != "int64" or len(ids.shape) != 2:
            builder.refuse(node, "ids that are not [images, tokens] int64")
        value = Matches(ids, None)
    builder.values[node.outputs[0]] = Found(value)


def paired(builder: Builder, node: Node) -> bool:
    """Concat of each image's number and the place found in it; False where it is another one."""
    found = builder.values.get(node.inputs[-1])
    if len(node.inputs) != 2 or not isinstance(found, Found):
        return False
    images = builder.array(node.inputs[0])
    if images is None or not np.array_equal(images.reshape(-1), np.arange(images.size)):
        builder.refuse(node, "places that are not paired with every image in order")
    builder.values[node.outputs[0]] = found
    return True


def gather_nd(builder: Builder, index: int, node: Node) -> None:
    """GatherND of one row for each image."""
    found = builder.values.get(node.inputs[1])
    shape = builder.shape(node.inputs[0])
    if not isinstance(found, Found) or len(shape) != 3 or shape[:2] != found.among.ids.shape:
        builder.refuse(node, "other rows than one for each image, found among its ids")
    source = builder.arithmetic(node, node.inputs[0])
    output = builder.target(node.outputs[0], (shape[0], shape[2]), fit=rows)
    builder.emit(
        SelectRow(
            name=node.outputs[0],
            ids=found.among.ids,
            token=found.among.token,
            source=source,
            output=output,
        )
    )
    builder.keep(node.outputs[0], output)


RULES = {"Gather": gather, "Equal": equal, "ArgMax": arg_max, "GatherND": gather_nd}
