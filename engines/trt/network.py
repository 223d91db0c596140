"""A prepared graph as TensorRT's network: parsed, its weights handed over where they are mapped."""

from collections.abc import Mapping
from typing import cast

import numpy as np
import tensorrt as trt

from diffusion_rt.engines.errors import Fault, shown
from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.engines.trt.messages import Messages
from diffusion_rt.engines.trt.prepare import Prepared
from diffusion_rt.engines.trt.weights import MappedWeight, in_memory

TYPES = {"float32": trt.DataType.FLOAT, "float16": trt.DataType.HALF, "int64": trt.DataType.INT64}
MOST_ADDED = 4096  # bytes of one tensor that the parser adds; it has no reason for a large one


class Network:
    """A network and all that must live as long as it: its parser, and the weights it points to."""

    def __init__(
        self,
        builder: trt.Builder,
        prepared: Prepared,
        weights: Mapping[str, MappedWeight],
        messages: Messages,
        *,
        plugins: bool = False,
    ) -> None:
        """Parse the graph; `plugins` prefers those made ahead of time to those in Python.

        Raises Fault with the parser's first reason where it refuses the graph.
        """
        flags = 0
        if plugins:
            flags |= 1 << int(trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS)
        self.definition = builder.create_network(flags)
        self._initializers = {**weights, **prepared.constants}
        self._messages = messages
        self._content = prepared.content
        self._file = prepared.variant.file
        self._parser = messages.made("parser", lambda: trt.OnnxParser(self.definition, messages))
        if not self._parser.load_model_proto(self._content):
            raise self._refused()
        for name, weight in weights.items():
            if not self._parser.load_initializer(name, weight.address, weight.data.nbytes):
                raise self._refused(f"weight {name}")
        if not self._parser.parse_model_proto():
            raise self._refused()
        self._check(prepared.variant.inputs, self._found(self.definition.num_inputs, "input"))
        self._check(prepared.variant.outputs, self._found(self.definition.num_outputs, "output"))

    def added(self) -> dict[str, MappedWeight]:
        """The small tensors that the parser added to the graph's own, each under a new name.

        The names it gives them itself say nothing of where they come from.
        """
        found: dict[str, MappedWeight] = {}
        for index in range(self.definition.num_layers):
            layer = self.definition.get_layer(index)
            if layer.type != trt.LayerType.CONSTANT or layer.name in self._initializers:
                continue
            layer.__class__ = trt.IConstantLayer  # the bindings give each layer its base class
            values = cast("trt.IConstantLayer", layer).weights
            if isinstance(values, np.ndarray) and 0 < values.nbytes <= MOST_ADDED:
                name = f"added.{len(found)}"
                if self.definition.set_weights_name(trt.Weights(values), name):
                    found[name] = in_memory(name, values.dtype.name, values.tobytes())
        self._messages.forget()  # a name that is refused is no failure
        return found

    def _found(self, count: int, kind: str) -> dict[str, trt.ITensor]:
        get = self.definition.get_input if kind == "input" else self.definition.get_output
        tensors = [get(index) for index in range(count)]
        return {tensor.name: tensor for tensor in tensors}

    def _check(self, wanted: tuple[TensorSpec, ...], found: Mapping[str, trt.ITensor]) -> None:
        """What TensorRT made of the graph must have the manifest's inputs and outputs."""
        for spec in wanted:
            tensor = found.get(spec.name)
            if tensor is None or tensor.dtype != TYPES[spec.dtype]:
                got = "nothing" if tensor is None else str(tensor.dtype)
                raise Fault(
                    f"{self._file}: TensorRT has {got} for {spec.name}, the manifest says "
                    f"{spec.dtype}; export the model again"
                )
        if len(found) != len(wanted):
            names = ", ".join(sorted(found.keys() - {spec.name for spec in wanted}))
            raise Fault(f"{self._file}: TensorRT has {names} beside what the manifest says")

    def _refused(self, what: str = "") -> Fault:
        reasons = [self._parser.get_error(i) for i in range(self._parser.num_errors)]
        reason = self._messages.reason()
        if reasons:
            first, node = reasons[0], ""
            if first.node() >= 0:
                node = f"node {shown(first.node_name())} ({first.node_operator()}): "
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            reason = f"{node}{' '.join(first.desc().split())[:300]}{more}"
        where = f"{self._file}: {what}: " if what else f"{self._file}: "
        return Fault(f"{where}TensorRT's parser refuses it: {reason}")
