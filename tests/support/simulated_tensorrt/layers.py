"""A network's layers, and its numbers with the names that refitting knows them by."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from support.simulated_tensorrt.enums import DataType, LayerType
from support.simulated_tensorrt.plan import NUMPY, TYPES
from support.simulated_tensorrt.values import Dims, Weights

ADDED = "tmp_weight"


@dataclass
class Numbers:
    """Some numbers of a network, wherever they lie in memory."""

    name: str
    weights: Weights
    tensor: str = ""  # the initializer they are; none where the parser added them
    constant: bool = True  # whether a layer of their own holds them, not one that computes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.weights._read()).hexdigest()

    def values(self) -> "NDArray[Any] | Weights":
        """An array over the memory itself; the weights, where NumPy has no such type."""
        dtype = NUMPY.get(self.weights.dtype.name)
        if dtype is None:
            return self.weights
        return np.frombuffer(self.weights._memory(), dtype)


class ILayer:
    """One layer of a network."""

    def __init__(self) -> None:
        raise TypeError("No constructor defined!")

    @classmethod
    def _of(cls, name: str, numbers: Numbers | None = None) -> "ILayer":
        layer = cls.__new__(cls)
        layer.name, layer._numbers = name, numbers
        return layer

    name: str
    _numbers: Numbers | None

    @property
    def type(self) -> LayerType:
        return LayerType.ELEMENTWISE if self._numbers is None else LayerType.CONSTANT


class IConstantLayer(ILayer):
    """A layer of numbers; what a network hands out is an ILayer, until its class is changed."""

    @property
    def weights(self) -> "NDArray[Any] | Weights":
        assert self._numbers is not None
        return self._numbers.values()

    @property
    def shape(self) -> Dims:
        assert self._numbers is not None
        return Dims([self._numbers.weights.size])


def numbers_of(model: Any, given: Mapping[str, tuple[int, int]]) -> list[Numbers]:
    """The numbers of a network as the parser makes it: initializers, and what it adds itself.

    Those that were handed over lie where they lay, all others in memory of the parser's.
    """
    read = {(name, node.op_type, place) for node in model.graph.node for place, name in _in(node)}
    filters = {name for name, op, place in read if op == "Conv" and place > 0}
    found = []
    for tensor in model.graph.initializer:
        if tensor.data_type not in TYPES:
            continue
        dtype = TYPES[tensor.data_type]
        if tensor.name in given:
            address, size = given[tensor.name]
            weights = Weights(dtype, address, size // dtype.itemsize)
        else:
            if not tensor.raw_data:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
            weights = Weights._owned(dtype, tensor.raw_data)
        found.append(Numbers(tensor.name, weights, tensor.name, tensor.name not in filters))
    for node in model.graph.node:
        if node.op_type == "Attention":
            found += _added(node, len(found))
    return found


def _added(node: Any, count: int) -> list[Numbers]:
    """The scale of queries and of keys: the root of an attribute, or made of the heads' size."""
    scales = [attribute.f for attribute in node.attribute if attribute.name == "scale"]
    if scales:
        kind, content = DataType.FLOAT, np.float32(math.sqrt(scales[0])).tobytes()
    else:
        kind, content = DataType.INT64, np.int64(3).tobytes()  # where in a shape it stands
    return [Numbers(f"{ADDED}_{count + i}", Weights._owned(kind, content)) for i in range(2)]


def _in(node: Any) -> list[tuple[int, str]]:
    return list(enumerate(node.input))
