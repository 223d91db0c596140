"""The ONNX parser."""

import ctypes
import hashlib
from typing import Any

import onnx
from onnx import TensorProto

from support.parser_list import examined
from support.simulated_tensorrt.build import INetworkDefinition
from support.simulated_tensorrt.enums import ErrorCode, OnnxParserFlag, Severity
from support.simulated_tensorrt.layers import numbers_of
from support.simulated_tensorrt.plugin import Use, put_back, take
from support.simulated_tensorrt.rules import Broken
from support.simulated_tensorrt.values import ILogger, logger_of

_ITEM_BYTES = {
    TensorProto.FLOAT: 4,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.INT64: 8,
    TensorProto.INT32: 4,
    TensorProto.BOOL: 1,
}


class ParserError:
    """Why a model could not be parsed."""

    def __init__(self) -> None:
        raise TypeError("No constructor defined!")

    @classmethod
    def _of(cls, code: ErrorCode, text: str, node: Any = None, place: int = -1) -> "ParserError":
        error = cls.__new__(cls)
        error._fields = (code, text, node, place)
        return error

    _fields: tuple[ErrorCode, str, Any, int]

    def code(self) -> ErrorCode:
        return self._fields[0]

    def desc(self) -> str:
        return self._fields[1]

    def node(self) -> int:
        return self._fields[3]

    def node_name(self) -> str:
        return str(self._fields[2].name) if self._fields[2] is not None else ""

    def node_operator(self) -> str:
        return str(self._fields[2].op_type) if self._fields[2] is not None else ""

    def __repr__(self) -> str:
        return f"In node {self.node()} ({self.node_operator()}): {self.code().name}: {self.desc()}"


class OnnxParser:
    """Fills a network from an ONNX model."""

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        if not isinstance(network, INetworkDefinition):
            raise TypeError("incompatible constructor arguments")
        self._network, self._logger = network, logger_of(logger)
        self._model: Any = None
        self._given: dict[str, tuple[int, int]] = {}
        self._errors: list[ParserError] = []
        self._flags = 1 << int(OnnxParserFlag.NATIVE_INSTANCENORM)

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    @property
    def flags(self) -> int:
        return self._flags

    @flags.setter
    def flags(self, flags: int) -> None:
        self._flags = flags

    def set_flag(self, flag: OnnxParserFlag) -> None:
        self._flags |= 1 << int(flag)

    def get_flag(self, flag: OnnxParserFlag) -> bool:
        return bool(self._flags & 1 << int(flag))

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def clear_errors(self) -> None:
        self._errors.clear()

    def load_model_proto(self, model: Any, path: str | None = None) -> bool:
        if self._model is not None:
            return self._fail(ErrorCode.INVALID_VALUE, "a model is loaded already")
        try:
            self._model = onnx.load_model_from_string(bytes(memoryview(model)))
        except Exception:
            return self._fail(ErrorCode.MODEL_DESERIALIZE_FAILED, "no ONNX model")
        return True

    def load_initializer(self, name: str, data: int, size: int) -> bool:
        if self._model is None:
            return self._fail(ErrorCode.INVALID_VALUE, "load_model_proto comes first")
        tensors = [t for t in self._model.graph.initializer if t.name == name]
        if not tensors:
            return self._fail(ErrorCode.INVALID_VALUE, f"no initializer {name}")
        wanted = _ITEM_BYTES[tensors[0].data_type]
        for dim in tensors[0].dims:
            wanted *= dim
        if int(size) != wanted:
            return self._fail(ErrorCode.INVALID_VALUE, f"{name}: {size} bytes, wants {wanted}")
        if not data:
            raise Broken(f"{name} at a null pointer")
        self._given[name] = (int(data), int(size))
        return True

    def parse_model_proto(self) -> bool:
        if self._model is None:
            return self._fail(ErrorCode.INVALID_VALUE, "load_model_proto comes first")
        graph = self._model.graph
        for tensor in graph.initializer:
            if tensor.name in self._given:
                content = ctypes.string_at(*self._given[tensor.name])
                del tensor.external_data[:]
                tensor.data_location = TensorProto.DEFAULT
                tensor.raw_data = content
            elif tensor.data_location == TensorProto.EXTERNAL:
                text = f"Failed to import initializer {tensor.name}: its data is not here"
                return self._fail(ErrorCode.INVALID_GRAPH, text)
        uses = []
        for found in take(self._model):
            if isinstance(found, Use):
                uses.append(found)
            else:
                node, what = found
                self._fail(ErrorCode.UNSUPPORTED_NODE, what, node, list(graph.node).index(node))
        if self._errors:
            return False
        put_back(self._model)
        for node, what in examined(self._model):
            place = -1 if node is None else list(graph.node).index(node)
            self._fail(ErrorCode.UNSUPPORTED_NODE, what, node, place)
        if self._errors:
            return False
        try:
            inferred = onnx.shape_inference.infer_shapes(
                self._model, check_type=True, strict_mode=True, data_prop=True
            )
        except Exception as error:  # a type that does not fit another, mostly
            return self._fail(ErrorCode.INVALID_GRAPH, " ".join(str(error).split())[:300])
        given = {
            name: (address, size, hashlib.sha256(ctypes.string_at(address, size)).hexdigest())
            for name, (address, size) in self._given.items()
        }
        self._network._take(inferred, given, self, uses, numbers_of(inferred, self._given))
        return True

    def parse(self, model: Any, path: str | None = None) -> bool:
        return self.load_model_proto(model, path) and self.parse_model_proto()

    def _fail(self, code: ErrorCode, text: str, node: Any = None, place: int = -1) -> bool:
        self._errors.append(ParserError._of(code, text, node, place))
        self._logger._say(Severity.ERROR, text)
        return False
