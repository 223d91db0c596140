"""Traces made once for all tests of a run: a trace depends on configs alone, not on weights."""

import fcntl
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from diffusion_rt.export.trace import Traceable, trace

Tracer = Callable[[Traceable], ir.Model]


def tracer(shared: Path) -> Tracer:
    """`trace`, with the graphs of networks that were traced before kept in `shared`."""
    shared.mkdir(parents=True, exist_ok=True)

    def traced(network: Traceable) -> ir.Model:
        plan = network.plan
        what = [plan.network, plan.outputs, plan.bounds, network.config]
        name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = shared / f"{name}.onnx"
            if not path.exists():
                ir.save(trace(network), path)
        return ir.load(path)

    return traced
