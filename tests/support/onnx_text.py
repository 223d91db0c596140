"""ONNX graphs written as text, and run by the reference that onnx ships."""

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx import parser
from onnx.reference import ReferenceEvaluator

Arrays = dict[str, NDArray[Any]]


def parsed(text: str) -> ir.Model:
    """The graph that `text` spells, at the opset that export writes."""
    return ir.from_proto(parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]>\n{text}'))


def evaluate(model: ir.Model, given: Arrays) -> Arrays:
    """The outputs of `model` for the arrays of its inputs' names in `given`."""
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    names = [value.name or "" for value in model.graph.inputs]
    found = evaluator.run(None, {name: given[name] for name in names})
    return dict(zip((v.name or "" for v in model.graph.outputs), found, strict=True))
