"""`tensorrt.plugin`: plugins of one kernel, made ahead of time.

A size is an integer here from the first, so an expression over sizes is its value. What TensorRT
would only find out on a GPU is checked when a network is built: the kernel is in the PTX, its
parameters are inputs, integers and outputs in this order, and the launch is one the chip takes.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from diffusion_rt.kernels.driver import Launch, limits_of
from support.plugin_model import to_standard as put_back
from support.simulated_tensorrt.enums import DataType
from support.simulated_tensorrt.rules import Broken, device

_NO_OPT_IN = 48 * 1024  # shared memory: nobody says that a plugin may have more


class SymInt32(int):
    """A 32-bit integer over sizes."""

    def __new__(cls, value: int = 0) -> "SymInt32":
        if not -(2**31) <= value < 2**31:
            raise Broken(f"{value} is no 32-bit integer")
        return super().__new__(cls, value)


class ShapeExpr(SymInt32):
    """One size of a tensor."""

    def __mul__(self, other: int) -> "ShapeExpr":
        return ShapeExpr(int(self) * int(other))

    def __add__(self, other: int) -> "ShapeExpr":
        return ShapeExpr(int(self) + int(other))


def cdiv(first: ShapeExpr, second: int) -> ShapeExpr:
    return ShapeExpr(-(-int(first) // int(second)))


class SymExprs(list[Any]):
    """So many numbers."""

    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


@dataclass(frozen=True)
class TensorDesc:
    """A tensor's type and sizes."""

    shape_expr: tuple[ShapeExpr, ...]
    dtype: DataType

    def like(self) -> "TensorDesc":
        return self


@dataclass(frozen=True)
class KernelLaunchParams:
    """Blocks, threads, dynamic shared memory."""

    grid_x: int = 1
    grid_y: int = 1
    grid_z: int = 1
    block_x: int = 1
    block_y: int = 1
    block_z: int = 1
    shared_mem: int = 0


@dataclass(frozen=True)
class AutoTuneCombination:
    """Types of inputs and outputs, their formats, and ways to compute."""

    io_types: str
    layouts: str
    tactics: Sequence[int]


@dataclass(frozen=True)
class Use:
    """A plugin in a network."""

    plugin: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, int]


__all__ = [
    "AutoTuneCombination",
    "KernelLaunchParams",
    "ShapeExpr",
    "SymExprs",
    "SymInt32",
    "TensorDesc",
    "Use",
    "aot_impl",
    "autotune",
    "cdiv",
    "check",
    "op",
    "put_back",
    "register",
    "take",
]
op = SimpleNamespace()
_PLUGINS: dict[str, dict[str, Any]] = {}


def register(plugin_id: str) -> Callable[[Any], Any]:
    def keep(function: Any) -> Any:
        namespace, name = plugin_id.split("::")
        within = vars(op).setdefault(namespace, SimpleNamespace())
        if hasattr(within, name):
            raise ValueError(f"'{name}' has a definition")
        setattr(within, name, function)
        _PLUGINS[plugin_id] = {"register": function}
        return function

    return keep


def autotune(plugin_id: str) -> Callable[[Any], Any]:
    return _part(plugin_id, "autotune")


def aot_impl(plugin_id: str) -> Callable[[Any], Any]:
    return _part(plugin_id, "aot_impl")


def _part(plugin_id: str, part: str) -> Callable[[Any], Any]:
    if plugin_id not in _PLUGINS:
        raise ValueError(f"Plugin {plugin_id} is not registered")

    def keep(function: Any) -> Any:
        _PLUGINS[plugin_id][part] = function
        return function

    return keep


def take(model: Any) -> Iterator[Use | tuple[Any, str]]:
    """The plugins of a model, or a node and why it is none."""
    for node in [node for node in model.graph.node if node.domain not in ("", "ai.onnx")]:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        namespace = given.pop("plugin_namespace", b"").decode()
        version = given.pop("plugin_version", b"1").decode()
        name = f"{namespace}::{node.op_type}"
        if version != "1" or {"register", "aot_impl"} - _PLUGINS.get(name, {}).keys():
            yield node, "Plugin not found, are the plugin name, version, and namespace correct?"
            continue
        wanted = [
            parameter.name
            for parameter in inspect.signature(_PLUGINS[name]["register"]).parameters.values()
            if parameter.annotation is int
        ]
        if sorted(wanted) != sorted(given):
            raise Broken(f"{node.name}: attributes {sorted(given)}, {name} wants {sorted(wanted)}")
        # The parser reads an integer attribute as int32, in the order of the plugin's own fields.
        attributes = {key: int(np.int32(given[key])) for key in wanted}
        yield Use(name, tuple(node.input), attributes)


def check(uses: Sequence[Use], model: Any, shapes: Mapping[str, Sequence[int]]) -> None:
    """Ask for the launches of all plugins at some shapes of the network's inputs.

    Raises Broken where a launch could not be.
    """
    if not uses:
        return
    names = sorted({name for use in uses for name in use.inputs})
    known = {name: tuple(shapes[name]) for name in names if name in shapes}
    asked = [name for name in names if name not in known]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked)
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {
        end.name: np.zeros(
            [dim.dim_value or size for dim, size in _sizes(end, shapes)],
            helper.tensor_dtype_to_np_dtype(end.type.tensor_type.elem_type),
        )
        for end in model.graph.input
    }
    known |= {
        name: found.shape for name, found in zip(asked, session.run(asked, feeds), strict=True)
    }
    for use in uses:
        _check(use, [known[name] for name in use.inputs])


def _sizes(end: Any, shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[Any, int]]:
    dims = end.type.tensor_type.shape.dim
    yield from zip(dims, shapes.get(end.name, [0] * len(dims)), strict=True)


def _check(use: Use, shapes: Sequence[Sequence[int]]) -> None:
    if any(size < 1 for shape in shapes for size in shape):
        raise Broken(f"{use.plugin}: sizes {shapes}")
    parts, given = _PLUGINS[use.plugin], dict(use.attributes)
    inputs = [TensorDesc(tuple(map(ShapeExpr, shape)), DataType.HALF) for shape in shapes]
    output = parts["register"](*inputs, **given)
    known = inspect.signature(parts["autotune"]).parameters
    chosen = {name: value for name, value in given.items() if name in known}
    for combination in parts["autotune"](*inputs, **chosen, outputs=(output,)):
        if combination.io_types != "FP16, FP16, FP16, FP16" or combination.layouts != "LINEAR":
            raise Broken(f"{use.plugin}: {combination}")
        for tactic in combination.tactics:
            kernel, ptx, launch, integers = parts["aot_impl"](
                *inputs, *given.values(), (output,), tactic
            )
            _check_kernel(kernel, ptx, len(inputs), len(integers))
            if not all(isinstance(number, SymInt32) for number in integers):
                raise Broken(f"{use.plugin}: integers that are no SymInt32")
            _check_launch(kernel, ptx, launch)


def _check_kernel(kernel: str, ptx: bytes, inputs: int, integers: int) -> None:
    found = re.search(rf"\.visible \.entry {kernel}\((.*?)\)".encode(), ptx, re.DOTALL)
    if found is None:
        raise Broken(f"no kernel {kernel} in its PTX")
    kinds = re.findall(rb"\.param \.(\w+)", found[1])
    if kinds != [b"u64"] * inputs + [b"u32"] * integers + [b"u64"]:
        raise Broken(f"{kernel}: parameters {kinds}, not inputs, integers, output")


def _check_launch(kernel: str, ptx: bytes, launch: KernelLaunchParams) -> None:
    static = sum(int(size) for size in re.findall(rb"\.shared [^;]*\[(\d+)\];", ptx))
    if static + launch.shared_mem > _NO_OPT_IN:
        raise Broken(f"{kernel}: {static + launch.shared_mem} bytes of shared memory")
    limits_of(device().arch).check(
        Launch(
            grid=(int(launch.grid_x), int(launch.grid_y), int(launch.grid_z)),
            block=(int(launch.block_x), int(launch.block_y), int(launch.block_z)),
            shared_bytes=launch.shared_mem,
        ),
        kernel,
        static,
    )
