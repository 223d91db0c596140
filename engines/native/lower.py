"""An ONNX graph at one size becomes a plan: the rules of `patterns/` in the graph's own order."""

from collections.abc import Callable, Mapping, Sequence

from diffusion_rt.engines.artefact import read_bytes
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.native.builder import Builder, whole
from diffusion_rt.engines.native.graph import Graph, Node, read_graph
from diffusion_rt.engines.native.patterns import (
    attention,
    convolution,
    elementwise,
    norms,
    product,
    shaping,
    text,
    timestep,
)
from diffusion_rt.engines.native.patterns.shaping import same
from diffusion_rt.engines.native.placement import in_place, place
from diffusion_rt.engines.native.plan import Arithmetic, Buffer, Copy, Plan
from diffusion_rt.engines.native.schedule import shortcuts_first
from diffusion_rt.engines.native.sizes import sizes_of
from diffusion_rt.engines.native.values import Waves
from diffusion_rt.engines.onnx_file import MAX_BYTES, check_external, read_onnx
from diffusion_rt.engines.spec import Precision, TensorSpec

Rule = Callable[[Builder, int, Node], None]
Attempt = Callable[[Builder, Node], bool]

RULES: Mapping[str, Rule] = {
    **shaping.RULES,
    **product.RULES,
    **convolution.RULES,
    **attention.RULES,
    **norms.RULES,
    **elementwise.RULES,
    **text.RULES,
    **timestep.RULES,
}
# What an operator may be besides what its rule makes of it.
ATTEMPTS: Mapping[str, Sequence[Attempt]] = {
    "Add": (text.embedding,),
    "Mul": (timestep.angles,),
    "Concat": (timestep.joined, text.paired),
    "Slice": (timestep.halved,),
}


def lower(
    graph: Graph,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    dtype: Arithmetic,
    name: str,
) -> Plan:
    """The plan of `graph`, whose signature is `inputs` and `outputs`, with symbols of these sizes.

    Arithmetic is in `dtype` whatever the signature says; an input or output of another type is
    cast. Raises BadInput where the signature is not the graph's, a size is missing, and where a
    node is not known: with its name and operator.
    """
    if wrong := [symbol for symbol, size in sizes.items() if size < 1]:
        raise BadInput(f"{name}: {wrong[0]} is {sizes[wrong[0]]}, wants 1 at least")
    given = [_buffer(spec, sizes, name) for spec in inputs]
    if {buffer.name for buffer in given} != set(graph.inputs):
        raise BadInput(f"{name}: inputs are {', '.join(graph.inputs)}, not those of the manifest")
    if {spec.name for spec in outputs} != set(graph.outputs):
        raise BadInput(f"{name}: outputs are {', '.join(graph.outputs)}, not those of the manifest")
    known = sizes_of(graph, {buffer.name: buffer.shape for buffer in given}, name)
    made = [Buffer(spec.name, spec.dtype, known[spec.name].shape, "output") for spec in outputs]
    for spec, buffer in zip(outputs, made, strict=True):
        _check_output(spec, buffer, sizes, name)
    builder = Builder(graph, known, given, made, dtype, name)
    for index, node in enumerate(graph.nodes):  # so that a product sees others of the same tensor
        if node.operator in ("Cast", "Transpose") and builder.parameter(node.inputs[0]):
            RULES[node.operator](builder, index, node)
            builder.claimed.add(index)
    try:
        for index, node in enumerate(graph.nodes):
            _lower_node(builder, index, node)
    except RecursionError:
        raise BadInput(f"{name}: views of views without end; run with --engine ort") from None
    for buffer in made:
        _write_output(builder, buffer)
    ordered = shortcuts_first(builder.operations)
    operations, buffers = in_place(ordered, builder.buffers)
    buffers, arena = place(operations, buffers)
    return Plan(
        graph=name,
        dtype=dtype,
        sizes=dict(sizes),
        inputs=tuple(spec.name for spec in inputs),
        outputs=tuple(spec.name for spec in outputs),
        buffers=buffers,
        weights=builder.weights,
        constants=builder.constants,
        operations=tuple(operations),
        arena_size=arena,
    )


def _buffer(spec: TensorSpec, sizes: Mapping[str, int], what: str) -> Buffer:
    try:
        return Buffer(spec.name, spec.dtype, spec.resolve(sizes), "input")
    except KeyError as missing:
        raise BadInput(f"{what}: no size is given for {missing.args[0]}") from None


def _check_output(spec: TensorSpec, buffer: Buffer, sizes: Mapping[str, int], what: str) -> None:
    wanted = [n if isinstance(n, int) else sizes.get(n) for n in spec.shape]
    fits = len(wanted) == len(buffer.shape) and all(
        n is None or n == size for n, size in zip(wanted, buffer.shape, strict=True)
    )
    if not fits:
        raise BadInput(
            f"{what}: {spec.name} would be {list(buffer.shape)}, the manifest says "
            f"{list(spec.shape)}; is the size one that 8 divides?"
        )


def _lower_node(builder: Builder, index: int, node: Node) -> None:
    if index in builder.deferred:
        builder.deferred.pop(index)()
    elif index in builder.claimed or all(
        builder.array(name) is not None for name in node.outputs if name
    ):
        return  # part of another operation, or arithmetic on sizes
    elif not any(attempt(builder, node) for attempt in ATTEMPTS.get(node.operator, ())):
        if node.operator not in RULES:
            builder.refuse(node, "no operation does this")
        if node.operator != "Cast":
            for name in node.inputs:
                if isinstance(builder.values.get(name), Waves):
                    timestep.written(builder, node, name)
        RULES[node.operator](builder, index, node)


def _write_output(builder: Builder, buffer: Buffer) -> None:
    """Copy an output that no operation has written where it belongs."""
    reader = Node("Output", buffer.name, (buffer.name,), (), {})
    if isinstance(builder.values.get(buffer.name), Waves):
        timestep.written(builder, reader, buffer.name)
    source = builder.tensor(reader, buffer.name)
    target = whole(buffer)
    if not same(source, target):
        builder.emit(Copy(name=buffer.name, source=source, output=target))


def plan_of(
    folder: ModelFolder, graph: str, sizes: Mapping[str, int], dtype: Arithmetic = "float16"
) -> Plan:
    """The plan of one graph of a model folder, whose weights are not read.

    float16 takes the float16 graph, so float16 inputs and outputs; float32 and bfloat16 take the
    float32 graph. `sizes` gives each symbol of the graph's inputs, such as batch, height, width
    (of latents, in pixels / 8) and tokens. Raises BadInput where the file is broken, where a size
    is missing or does not fit, and where a node is not known.
    """
    variant = folder.variant(graph, precision_of(dtype))
    path = folder.path / variant.file
    content = read_bytes(path, MAX_BYTES, follow_links=False)
    onnx = read_onnx(content, str(path))
    check_external(onnx, variant.file, folder.manifest.files)
    read = read_graph(content, str(path), onnx)
    return lower(read, variant.inputs, variant.outputs, sizes, dtype, graph)


def precision_of(dtype: Arithmetic) -> Precision:
    """Which of a model folder's graphs arithmetic in `dtype` is lowered from."""
    return "float16" if dtype == "float16" else "float32"
