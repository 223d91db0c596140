"""Weights given to an engine that exists."""

import hashlib
from typing import Any

import onnx

from support.simulated_tensorrt.enums import DataType, Severity, TensorLocation
from support.simulated_tensorrt.rules import Broken
from support.simulated_tensorrt.runtime import ICudaEngine
from support.simulated_tensorrt.values import ILogger, Weights, logger_of


class Refitter:
    """Replaces the weights of an engine."""

    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        if not engine.refittable:
            logger._say(Severity.ERROR, "the engine is not refittable")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._engine, self._logger = engine, logger_of(logger)
        self._given: dict[str, Weights] = {}
        self.weights_validation = True
        self.max_threads = 1

    @property
    def logger(self) -> ILogger:
        return self._logger

    def get_all_weights(self) -> list[str]:
        return list(self._engine._facts.weights)

    def get_missing_weights(self) -> list[str]:
        return [name for name in sorted(self._engine._missing) if name not in self._given]

    def get_weights_prototype(self, weights_name: str) -> Weights:
        stored = self._engine._facts.weights.get(weights_name)
        if stored is None:
            return Weights(DataType.FLOAT, 0, -1)
        return Weights(DataType[stored.dtype], 0, stored.count)

    def set_named_weights(
        self, name: str, weights: Weights, location: TensorLocation = TensorLocation.HOST
    ) -> bool:
        if location is not TensorLocation.HOST:
            raise Broken("weights on the device are not simulated")
        stored = self._engine._facts.weights.get(name)
        fits = stored is not None and (stored.dtype, stored.count) == (
            weights.dtype.name,
            weights.size,
        )
        if not fits:
            self._logger._say(Severity.ERROR, f"{name}: these are not the weights wanted")
            return False
        self._given[name] = weights
        return True

    def refit_cuda_engine(self) -> bool:
        if missing := self.get_missing_weights():
            self._logger._say(Severity.ERROR, f"{len(missing)} weights are missing")
            return False
        engine = self._engine
        model: Any = onnx.load_model_from_string(engine._model)
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for name, given in self._given.items():
            content, stored = given._read(), engine._facts.weights[name]
            same = hashlib.sha256(content).hexdigest() == stored.sha256
            if not same and "REFIT" not in engine._facts.flags:
                raise Broken(f"REFIT_IDENTICAL, and {name} is not what it was built with")
            if stored.tensor:
                tensors[stored.tensor].raw_data = content
        engine._model, engine._arithmetic = model.SerializeToString(), None
        engine._missing -= self._given.keys()
        return True
