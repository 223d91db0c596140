"""What a processor can do at most, measured: the roof that the points of a roofline lie under.

Products of large float32 matrices, by each library that the contenders compute with, and a copy of
memory that no cache holds. The roof is the best of them all: no median, since what was done once
can be done. A clock tells no more: processors leave the one they are sold by.
"""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.bench.case import Case
from diffusion_rt.bench.contender import Clock, Laps, Outcome, own_peak_rss
from diffusion_rt.bench.race import Tell
from diffusion_rt.bench.records import Origin, Record
from diffusion_rt.bench.spread import spread
from diffusion_rt.bench.worker import Worker
from diffusion_rt.engines.ort.backend import SPIN_MICROSECONDS
from diffusion_rt.engines.ort.library import load_library

SIDES = (1024, 2048, 3072, 4096)  # of the matrices
COPIED = 1 << 28  # bytes, eight times the largest cache and more
COPY = "copy"
# What NumPy's BLAS may be; it reads these when it is loaded.
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
CASE = Case(
    prompt="", width=8, height=8, images=1, steps=1, sampler="euler", guidance_scale=1, seed=0
)
Matrix = NDArray[np.float32]


class Ceiling(ABC):
    """Products of some sizes, one after the other; the measure of each is the side of its matrices.

    What does them and, where it has a way of its own, the copy is up to the library.
    """

    name = ""
    copies = True

    def __init__(
        self,
        *,
        threads: int,
        sides: Sequence[int] = SIDES,
        copied: int = COPIED,
        clock: Clock = time.perf_counter,
    ) -> None:
        draw = np.random.default_rng(0)
        self._threads, self._clock = threads, clock
        self._pairs: dict[int, tuple[Matrix, Matrix, Matrix]] = {}
        for side in sides:
            a, b = (draw.standard_normal((side, side), np.float32) for _ in range(2))
            self._pairs[side] = a, b, np.empty_like(a)
        self._source = draw.integers(0, 256, copied if self.copies else 0, np.uint8)
        self._target = np.empty_like(self._source)
        self._open()

    def run(self, case: Case) -> Outcome:
        """One product of each size and one copy."""
        laps = {}
        for side in self._pairs:
            started = self._clock()
            self._multiply(side)
            laps[str(side)] = [self._clock() - started]
        if self.copies:
            started = self._clock()
            self._copy()
            laps[COPY] = [self._clock() - started]
        products = {str(side): product[:2, :2] for side, (_, _, product) in self._pairs.items()}
        return Outcome(products, laps)

    def peak_rss(self) -> int | None:
        """The most memory that this process held, in bytes."""
        return own_peak_rss()

    def peak_device(self) -> int | None:
        """None: it uses no GPU."""
        return None

    def close(self) -> None:  # noqa: B027  (nothing to do is right)
        """Nothing is open."""

    def _open(self) -> None:  # noqa: B027  (most want nothing)
        """What the library wants to be done before."""

    @abstractmethod
    def _multiply(self, side: int) -> None:
        """One product of that size."""

    def _copy(self) -> None:
        """One copy: NumPy's, where the library has none of its own."""
        np.copyto(self._target, self._source)


class NumpyCeiling(Ceiling):
    """By NumPy, whose BLAS takes as many threads as the environment said when it was loaded."""

    name = "numpy"

    def _multiply(self, side: int) -> None:
        a, b, product = self._pairs[side]
        np.matmul(a, b, out=product)


class TorchCeiling(Ceiling):
    """By PyTorch, over the same memory."""

    name = "torch"

    def _open(self) -> None:
        import torch

        torch.set_num_threads(self._threads)
        self._tensors = {
            side: [torch.from_numpy(x) for x in three] for side, three in self._pairs.items()
        }
        self._ends = [torch.from_numpy(x) for x in (self._source, self._target)]

    def _multiply(self, side: int) -> None:
        import torch

        a, b, product = self._tensors[side]
        torch.mm(a, b, out=product)

    def _copy(self) -> None:
        self._ends[1].copy_(self._ends[0])


class OrtCeiling(Ceiling):
    """By ONNX Runtime, the second matrix a constant as weights are; it has no copy of its own."""

    name = "onnxruntime"
    copies = False

    def _open(self) -> None:
        import onnx

        library = load_library()
        options = library.SessionOptions()
        options.intra_op_num_threads = self._threads
        entry = "session.intra_op.spin_duration_us"
        options.add_session_config_entry(entry, str(SPIN_MICROSECONDS))
        self._bindings = {}
        for side, (a, b, product) in self._pairs.items():
            read, made = (
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, a.shape)
                for name in ("a", "c")
            )
            node = onnx.helper.make_node("MatMul", ["a", "b"], ["c"])
            weights = onnx.numpy_helper.from_array(b, "b")
            graph = onnx.helper.make_graph([node], "product", [read], [made], [weights])
            opset = onnx.helper.make_opsetid("", 17)
            model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
            session = library.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            binding = session.io_binding()
            binding.bind_input("a", "cpu", 0, np.float32, a.shape, a.ctypes.data)
            binding.bind_output("c", "cpu", 0, np.float32, a.shape, product.ctypes.data)
            self._bindings[side] = session, binding

    def _multiply(self, side: int) -> None:
        session, binding = self._bindings[side]
        session.run_with_iobinding(binding)


# Of each the module that it needs.
KINDS: Mapping[type[Ceiling], Sequence[str]] = {
    NumpyCeiling: (),
    TorchCeiling: ("torch",),
    OrtCeiling: ("onnxruntime", "onnx"),
}


def measured(threads: int, repeats: int, warm_up: int, tell: Tell, **sizes: Any) -> dict[str, Laps]:
    """The seconds of each contender, each in a process that was told its number of threads."""
    found: dict[str, Laps] = {}
    for kind, needs in KINDS.items():
        if not all(map(find_spec, needs)):
            continue
        name = kind.name
        before = {variable: os.environ.get(variable) for variable in THREADS}
        os.environ.update({variable: str(threads) for variable in THREADS})
        try:
            factory = f"diffusion_rt.bench.ceilings:{kind.__name__}"
            worker = Worker(name, factory, threads=threads, **sizes)
        finally:
            for variable, value in before.items():
                os.environ.pop(variable, None)
                if value is not None:
                    os.environ[variable] = value
        laps: dict[str, list[float]] = {}
        found[name] = laps
        try:
            for turn in range(-warm_up, repeats):
                tell(f"{name}: " + (f"run {turn + 1} of {repeats}" if turn >= 0 else "warm-up"))
                seconds = worker.run(CASE).seconds
                if turn >= 0:
                    for measure, values in seconds.items():
                        laps.setdefault(measure, []).extend(values)
        finally:
            worker.close()
    return found


def records_of(origin: Origin, found: Mapping[str, Laps], threads: int) -> list[Record]:
    """The seconds of each, with its operations or its bytes, read and written counted apart."""
    records = []
    for name, laps in found.items():
        for measure, seconds in laps.items():
            common: dict[str, str | int | float] = {"dtype": "float32", "threads": threads}
            values = spread(seconds)
            if measure == COPY:
                setting = {"copied": COPIED, **common}
                record = origin.record(COPY, name, setting, spread=values, nbytes=2 * COPIED)
            else:
                side = int(measure)
                setting = {"m": side, "n": side, "k": side, **common}
                record = origin.record("matmul", name, setting, spread=values, flop=2 * side**3)
            records.append(record)
    return records
