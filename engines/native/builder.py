"""The state of a lowering: what each value is, and the plan as far as it is made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.native.graph import Graph, Node
from diffusion_rt.engines.native.plan import (
    VECTOR,
    Arithmetic,
    Buffer,
    Copy,
    Layout,
    Operation,
    View,
    Weight,
)
from diffusion_rt.engines.native.sizes import Sized
from diffusion_rt.engines.native.values import Parameter, Tensor, Value
from diffusion_rt.engines.native.views import (
    contiguous,
    inverse,
    narrowed,
    order_of,
    permuted,
    pixels,
    reshaped,
)
from diffusion_rt.engines.onnx_file import ExternalTensor

OUTPUT = -1  # stands for a graph's output among the places that read a value

# Operators that leave every number as it is; a Cast between float types is only a change of type.
VIEWS = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Cast")


class Builder:
    """What the rules of `patterns/` read and add to."""

    def __init__(
        self,
        graph: Graph,
        sizes: Mapping[str, Sized],
        inputs: Sequence[Buffer],
        outputs: Sequence[Buffer],
        dtype: Arithmetic,
        what: str,
    ) -> None:
        """A plan yet without operations, for arithmetic in `dtype`; `what` names it in messages."""
        self.graph = graph
        self.sizes = sizes
        self.dtype = dtype
        self.what = what
        self.buffers = {buffer.name: buffer for buffer in (*inputs, *outputs)}
        self.weights: dict[str, Weight] = {}
        self.constants: dict[str, NDArray[Any]] = {}
        self.operations: list[Operation] = []
        self.values: dict[str, Value] = {buffer.name: Tensor(whole(buffer)) for buffer in inputs}
        for name, constant in graph.constants.items():
            if isinstance(constant, ExternalTensor):
                self.values[name] = Parameter(constant)
        self.claimed: set[int] = set()  # nodes that an operation has taken in
        self.deferred: dict[int, Callable[[], None]] = {}  # node -> what is done when it is met
        self._outputs = {buffer.name: buffer for buffer in outputs}
        self._readers: dict[str, list[int]] = {}
        for index, node in enumerate(graph.nodes):
            for name in node.inputs:
                self._readers.setdefault(name, []).append(index)
        for name in graph.outputs:
            self._readers.setdefault(name, []).append(OUTPUT)
        self._places: dict[str, View | None] = {}
        self._joints: dict[int, View] = {}
        self._narrowed: dict[View, View] = {}  # of another type -> of the arithmetic's

    # Reading the graph

    def readers(self, name: str) -> list[int]:
        """The nodes that read a value, each as often as it does; OUTPUT for the graph's output."""
        return self._readers.get(name, [])

    def only_reader(self, name: str) -> int | None:
        """The one node that reads a value, once, and which nothing has taken in."""
        found = self.readers(name)
        if len(found) != 1 or found[0] == OUTPUT or found[0] in self.claimed:
            return None
        return found[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """A value's shape."""
        return self.sizes[name].shape

    def array(self, name: str) -> NDArray[Any] | None:
        """A value that sizes and constants alone make."""
        return self.sizes[name].array

    def parameter(self, name: str) -> Parameter | None:
        """A tensor of the checkpoint, where the value is one."""
        found = self.values.get(name)
        return found if isinstance(found, Parameter) else None

    def refuse(self, node: Node, reason: str) -> NoReturn:
        """BadInput that names the node and its operator."""
        raise BadInput(
            f"{self.what}: node {shown(node.name)}, operator {shown(node.operator)}: {reason}; the "
            "native engine cannot run it, run with --engine ort"
        )

    # Reading values

    def tensor(self, node: Node, name: str) -> View:
        """A value as plain numbers in a buffer, in whatever type it has."""
        found = self.values.get(name)
        if not isinstance(found, Tensor):
            kind = "nothing" if found is None else type(found).__name__.lower()
            self.refuse(node, f"reads {shown(name)}, which is {kind} and no tensor of numbers")
        if found.plain:
            return found.view
        if found.beside is None or found.enlarged is not None or any(found.padding):
            self.refuse(node, f"reads {shown(name)}, which only a convolution can read")
        view = self._joined(name, (found.view, found.beside))
        self.values[name] = Tensor(view)
        return view

    def arithmetic(self, node: Node, name: str) -> View:
        """A value as numbers of the arithmetic's type."""
        return self.cast(name, self.tensor(node, name))

    def cast(self, name: str, view: View) -> View:
        """The view, or a copy of it in the arithmetic's type."""
        if view.dtype == self.dtype:
            return view
        if view.dtype not in ("float32", "float16", "bfloat16"):
            raise BadInput(f"{self.what}: {shown(name)} is {view.dtype}, wants real numbers")
        if view not in self._narrowed:
            copy = self.new(f"{name}.{self.dtype}", view.shape)
            self.emit(Copy(name=f"{name}.{self.dtype}", source=view, output=copy))
            self._narrowed[view] = copy
        return self._narrowed[view]

    def copied(self, name: str, view: View) -> View:
        """A copy whose memory is row-major."""
        copy = self.new(f"{name}.copy", view.shape)
        self.emit(Copy(name=f"{name}.copy", source=view, output=copy))
        return copy

    def _joined(self, name: str, parts: Sequence[View]) -> View:
        """Two pictures' channels in one buffer."""
        images, _, height, width = parts[0].shape
        channels = sum(part.shape[1] for part in parts)
        view = permuted(self.new(name, (images, height, width, channels)), (0, 3, 1, 2))
        start = 0
        for part in parts:
            output = narrowed(view, 1, start, part.shape[1])
            self.emit(Copy(name=name, source=part, output=output))
            start += part.shape[1]
        return view

    # Making values

    def emit(self, operation: Operation) -> None:
        """Add an operation to the plan."""
        self.operations.append(operation)

    def keep(self, name: str, result: View, steps: Sequence[Node] = ()) -> None:
        """Note that a value is `result` after the operators `steps`, which only view it."""
        view = self.forth(result, steps)
        assert view is not None, "a chain ends where its views do"
        self.values[name] = Tensor(view)

    def when(self, last: int, now: int, emit: Callable[[], None]) -> None:
        """Do something when the node `last` is met, which may be `now`."""
        if last == now:
            emit()
        else:
            self.deferred[last] = emit

    def new(self, name: str, shape: Sequence[int]) -> View:
        """A new buffer of the arithmetic's type."""
        unique, count = name, 1
        while unique in self.buffers:
            unique, count = f"{name}#{count}", count + 1
        buffer = Buffer(unique, self.dtype, tuple(shape), "arena")
        self.buffers[unique] = buffer
        return whole(buffer)

    def like(self, name: str, view: View) -> View:
        """A new buffer of a view's shape, its dimensions in memory in the same order."""
        order = order_of(view)
        return permuted(self.new(name, [view.shape[axis] for axis in order]), inverse(order))

    def target(
        self,
        name: str,
        shape: Sequence[int],
        steps: Sequence[Node] = (),
        fit: Callable[[View], View | None] = lambda view: view,
    ) -> View:
        """Where an operation writes the value `name`: into its place, or a new buffer of `shape`.

        The operation's own result becomes the value by `steps`; `fit` gives a view of that result
        as the operation writes it, None where it cannot.
        """
        place = self.place(name)
        if place is not None and place.dtype == self.dtype:
            back = self.back(place, steps)
            fitting = None if back is None else fit(back)
            if fitting is not None and fitting.shape == tuple(shape):
                return fitting
        return self.new(name, shape)

    def place(self, name: str) -> View | None:
        """The part of an output, or of a concatenation, that a value is to fill."""
        if name not in self._places:
            self._places[name] = None
            self._places[name] = next(
                (p for reader in self.readers(name) if (p := self._asked(name, reader))), None
            )
        return self._places[name]

    def _asked(self, name: str, reader: int) -> View | None:
        if reader == OUTPUT:
            return whole(self._outputs[name])
        node = self.graph.nodes[reader]
        if node.operator in VIEWS and node.inputs[0] == name:
            place = self.place(node.outputs[0])
            return None if place is None else self.back(place, [node])
        if node.operator == "Concat" and not self.stays_apart(node):
            return self.joint_part(reader, node.inputs.index(name))
        return None

    def stays_apart(self, node: Node) -> bool:
        """Whether a Concat's two parts are read side by side, and never written as one."""
        shape = self.shape(node.outputs[0])
        readers = [
            self.graph.nodes[i].operator for i in self.readers(node.outputs[0]) if i != OUTPUT
        ]
        return (
            len(node.inputs) == 2
            and len(shape) == 4
            and node.whole("axis", 0) in (1, -3)
            and len(readers) == len(self.readers(node.outputs[0]))
            and all(self.shape(part)[1] % VECTOR == 0 for part in node.inputs)
            and {"GroupNormalization", "Conv"}.issuperset(readers)
        )

    def joint(self, index: int) -> View:
        """The buffer, or the place, of all that a Concat joins."""
        if index not in self._joints:
            name = self.graph.nodes[index].outputs[0]
            shape = self.shape(name)
            place = self.place(name)
            if place is not None and place.dtype == self.dtype:
                self._joints[index] = place
            elif len(shape) == 4:
                turned = self.new(name, [shape[i] for i in (0, 2, 3, 1)])
                self._joints[index] = permuted(turned, (0, 3, 1, 2))
            else:
                self._joints[index] = self.new(name, shape)
        return self._joints[index]

    def joint_part(self, index: int, part: int) -> View:
        """The part of it that one input of the Concat fills."""
        node = self.graph.nodes[index]
        sizes = [self.shape(name) for name in node.inputs]
        axis = node.whole("axis", 0) % len(sizes[0])
        start = sum(size[axis] for size in sizes[:part])
        return narrowed(self.joint(index), axis, start, sizes[part][axis])

    def forth(self, view: View, steps: Sequence[Node]) -> View | None:
        """A view after the operators `steps`; None where that would need a copy."""
        for node in steps:
            if node.operator == "Transpose":
                view = permuted(view, self.order(node))
            else:
                found = reshaped(view, self.shape(node.outputs[0]))
                if found is None:
                    return None
                view = found
        return view

    def back(self, view: View, steps: Sequence[Node]) -> View | None:
        """What becomes `view` by the operators `steps`; None where that would need a copy."""
        for node in reversed(steps):
            if node.operator == "Transpose":
                view = permuted(view, inverse(self.order(node)))
            else:
                found = reshaped(view, self.shape(node.inputs[0]))
                if found is None:
                    return None
                view = found
        return view

    def order(self, node: Node) -> tuple[int, ...]:
        """The order of a Transpose."""
        rank = len(self.shape(node.inputs[0]))
        return node.wholes("perm", tuple(reversed(range(rank))))

    # Weights

    def weight(self, parameters: Sequence[Parameter], layout: Layout, shape: Sequence[int]) -> str:
        """The name of parameters laid out so, each made once."""
        sources = tuple(parameter.source for parameter in parameters)
        name = sources[0].name + f"+{len(sources) - 1}" * (len(sources) > 1)
        weight = Weight(name, sources, layout, self.dtype, tuple(shape))
        while self.weights.get(weight.name, weight) != weight:
            weight = replace(weight, name=f"{weight.name}.{layout}")
        self.weights[weight.name] = weight
        return weight.name

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """The name of an array that lies in the ONNX file."""
        dtype = str(array.dtype)
        self.weights[name] = Weight(name, (), "rows", dtype, array.shape)
        self.constants[name] = array
        return name

    def padded(self, view: View) -> View:
        """A picture [images, C, height, width] as [images, height, width, C], C filled up to 8.

        In the arithmetic's type; what fills up are zeros: who writes a buffer that is wider than
        its channels sees to that.
        """
        images, channels, height, width = view.shape
        wide = (images, height, width, -(-channels // VECTOR) * VECTOR)
        buffer = self.buffers[view.buffer]
        if view.dtype == self.dtype:
            if channels == wide[3] and (found := pixels(view)) is not None:
                return found
            if buffer.shape == wide:
                filling = narrowed(permuted(whole(buffer), (0, 3, 1, 2)), 1, 0, channels)
                if view == filling:
                    return whole(buffer)
        name = f"{view.buffer}.pixels"
        output = self.new(name, wide)
        self.emit(Copy(name=name, source=permuted(view, (0, 2, 3, 1)), output=output))
        return output


def whole(buffer: Buffer) -> View:
    """All of a buffer."""
    return View(buffer.name, buffer.dtype, buffer.shape, contiguous(buffer.shape))
