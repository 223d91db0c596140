"""TensorRT's own `tensorrt.plugin` asks our plugin what TensorRT asks while it builds.

Run in a process of its own that can import `tensorrt_bindings`: it reads questions as JSON and
prints the answers. What the C++ side would hold is stood in for: the registry (it keeps what is
registered) and expressions over sizes (they hold their value). All else is the bindings' Python.
"""

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np


class Registry:
    """Where plugins are made known."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str = "") -> bool:
        key = (creator.name, creator.plugin_version, namespace)
        assert key not in self.creators, f"{key} registered twice"
        self.creators[key] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str = "") -> Any:
        return self.creators[name, version, namespace]


class Size:
    """An expression over sizes that knows its value."""

    def __init__(self, value: int) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return False

    def get_constant_value(self) -> int:
        raise AssertionError("a size is no constant while an engine is built")


class Sizes:
    """Makes expressions; TensorRT's IExprBuilder."""

    def __init__(self, operation: Any) -> None:
        self._meaning: dict[Any, Callable[[int, int], int]] = {
            operation.SUM: lambda a, b: a + b,
            operation.PROD: lambda a, b: a * b,
            operation.SUB: lambda a, b: a - b,
            operation.MAX: max,
            operation.MIN: min,
            operation.FLOOR_DIV: lambda a, b: a // b,
            operation.CEIL_DIV: lambda a, b: -(-a // b),
        }

    def constant(self, value: int) -> Size:
        assert -(2**31) <= value < 2**31, f"{value} is no int32"
        return Size(value)

    def operation(self, operation: Any, first: Size, second: Size) -> Size:
        return self.constant(self._meaning[operation](first.value, second.value))


class Integers(dict[int, Any]):
    """TensorRT's ISymExprs: set by index, their number first."""

    nbSymExprs = 0


class Launch:
    """TensorRT's IKernelLaunchParams."""


def answers(trt: Any, registry: Registry, question: dict[str, Any]) -> dict[str, Any]:
    """What the plugin says for attributes and shapes of q, k and v."""
    creator = registry.get_creator(*question["plugin"])
    # The parser gives an integer attribute as int32, in the order of the creator's fields.
    names = [field.name for field in creator.field_names]
    integers = [np.array([question["attributes"][name]], np.int32) for name in names]
    fields = [
        trt.PluginField(name, value, trt.PluginFieldType.INT32)
        for name, value in zip(names, integers, strict=True)
    ]
    plugin = creator.create_plugin(
        question["plugin"][0],
        question["plugin"][2],
        trt.PluginFieldCollection(fields),
        trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_AOT,
    )
    sizes = Sizes(trt.DimensionOperation)
    types = plugin.get_output_data_types([trt.DataType.HALF] * 3, [4] * 3)
    inputs = [[Size(size) for size in shape] for shape in question["shapes"]]
    outputs = plugin.get_output_shapes(inputs, [], sizes)
    tensors = [_tensor(trt, [size.value for size in shape]) for shape in (*inputs, *outputs)]
    combinations = plugin.get_supported_format_combinations(tensors, 3)
    plugin.configure_plugin(tensors[:3], tensors[3:])
    launches = []
    for tactic in plugin.get_valid_tactics():
        plugin.set_tactic(tactic)
        launch, arguments = Launch(), Integers()
        plugin.get_launch_params(inputs, tensors, 3, launch, arguments, sizes)
        descriptions = [tensor.desc for tensor in tensors]
        kernel, ptx = plugin.get_kernel(descriptions[:3], descriptions[3:])
        assert sorted(arguments) == list(range(arguments.nbSymExprs))
        launches.append(
            {
                "tactic": tactic,
                "kernel": kernel,
                "ptx": ptx.decode(),
                "integers": [_value(arguments[i]) for i in range(arguments.nbSymExprs)],
                **{name: _value(number) for name, number in vars(launch).items()},
            }
        )
    return {
        "fields": names,
        "types": [str(dtype) for dtype in types],
        "shapes": [[size.value for size in shape] for shape in outputs],
        "combinations": [[str(each.type), str(each.format)] for each in combinations],
        "launches": launches,
    }


def _tensor(trt: Any, shape: list[int]) -> Any:
    tensor = trt.DynamicPluginTensorDesc()
    tensor.desc.dims = tensor.min = tensor.opt = tensor.max = trt.Dims(shape)
    tensor.desc.type, tensor.desc.format = trt.DataType.HALF, trt.TensorFormat.LINEAR
    return tensor


def _value(number: Any) -> int:
    value: int = number._expr.value
    return value


def main() -> None:
    """Read questions from the standard input, print the answers in the last line."""
    trt = importlib.import_module("tensorrt_bindings")
    sys.modules["tensorrt"] = trt
    sys.modules["tensorrt.plugin"] = importlib.import_module("tensorrt_bindings.plugin")
    registry = Registry()
    # C++ alone makes these three, and the registry of a stand-in library is null.
    stand_ins = {"IDimensionExpr": Size, "DimsExprs": lambda count: [None] * count}
    for name, made in {"get_plugin_registry": lambda: registry, **stand_ins}.items():
        setattr(trt, name, made)
    tensors: Any = importlib.import_module("tensorrt_bindings.plugin._tensor")
    tensors.SymExprImpl = lambda number: number
    ours = importlib.import_module("diffusion_rt.engines.trt.plugin")
    ours.register()
    ours.register()
    questions = json.loads(sys.argv[1])
    print("\n" + json.dumps([answers(trt, registry, question) for question in questions]))


if __name__ == "__main__":
    main()
