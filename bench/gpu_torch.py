"""A part of the GPU run: what PyTorch's libraries make of the same shapes, as yardsticks.

cuBLAS for every product of a step, cuDNN for every convolution of a step and of the decode, the
best backend of scaled dot product attention, and the chip's own ceilings. Each is captured in a
CUDA graph of several calls on different data, as our kernels are.
"""

import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice, pairwise
from typing import Any

import torch
from torch.nn import functional

from diffusion_rt.bench.gpu_rows import Setting, Sink
from diffusion_rt.bench.gpu_shapes import (
    Attention,
    Conv,
    Gemm,
    GroupNorm,
    LayerNorm,
    Shape,
    Shapes,
    decode,
    of_kind,
    step,
)
from diffusion_rt.bench.spread import median

TORCH = "torch"
HALF = 2  # bytes of a number
MOST_SETS = 6
SHOWN = 6  # of the shapes of a kind, in the short table
SECONDS = 0.15  # aimed at for all replays of a row

Work = Callable[[], Any]


class Yard:
    """Random numbers on a device, and times on it."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.cuda = not sink.chip.simulated
        self.where = torch.device("cuda" if self.cuda else "cpu")
        self.dtype = torch.float16 if self.cuda else torch.float32
        torch.backends.cudnn.benchmark = True

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.where, dtype=self.dtype)

    def sets(self, nbytes: int) -> int:
        """How many sets of inputs it takes that none is still in the cache when it comes again."""
        if not self.cuda:
            return 1
        return int(min(-(-2 * self.sink.chip.l2_bytes // nbytes) + 1, MOST_SETS))

    def times(self, works: list[Work], launches: int = 12) -> list[float]:
        """Seconds of a call, one value for each replay of a graph of several."""
        calls = list(islice(cycle(works), max(launches, len(works))))
        if not self.cuda:
            begun = time.perf_counter()
            works[0]()
            return [time.perf_counter() - begun]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for work in [*works, *works[:1] * 2]:
                work()  # Here libraries choose their kernels, which a capture forbids.
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        once = max(begin.elapsed_time(end) / 1e3, 1e-6)
        repeats = int(min(max(SECONDS / once, 8), 100))
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            graph.replay()
            event.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 / len(calls) for a, b in pairwise(events)]


def yardsticks(sink: Sink) -> None:
    """All of them, the most wanted first."""
    if not sink.chip.simulated and not torch.cuda.is_available():
        sink.not_run("yardsticks", "this torch sees no GPU")
        return
    with torch.inference_mode():
        yard = Yard(sink)
        size = (1024, 1024) if yard.cuda else (64, 64)
        one, last = step(*size), decode(*size)
        _guarded(sink, "matmul", lambda: _ceilings(yard))
        for kind in (Attention, Gemm, Conv, GroupNorm, LayerNorm):
            _all(yard, kind, one, "step")
        for kind in (Conv, Attention, GroupNorm):
            _all(yard, kind, last, "decode")


def _ceilings(yard: Yard) -> None:
    """The chip's rates on random data: a large product and a large copy."""
    side = 8192 if yard.cuda else 16
    for dtype in (torch.float16, torch.bfloat16):
        a, b = (yard.random(side, side).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        seconds = yard.times([partial(torch.mm, a, b, out=out)], 2)
        setting: Setting = {
            "m": side,
            "n": side,
            "k": side,
            "dtype": str(dtype).removeprefix("torch."),
        }
        yard.sink.timed("matmul", seconds, setting, contender=TORCH, flop=2 * side**3)
    count = 1 << 30 if yard.cuda else 1 << 10
    source = yard.random(count)
    target = torch.empty_like(source)
    seconds = yard.times([lambda: target.copy_(source)], 2)
    nbytes = 2 * source.nbytes
    yard.sink.timed("copy", seconds, {"copied": source.nbytes}, contender=TORCH, nbytes=nbytes)


def _all(yard: Yard, kind: type[Shape], shapes: Shapes, where: str) -> None:
    """Every shape of a kind, and what all of them come to in one step or decode."""
    total, missing = 0.0, 0
    name = kind.__name__.lower()
    found = list(of_kind(shapes, kind))
    for number, (shape, count) in enumerate(found if yard.cuda else found[-1:]):
        if yard.sink.late:
            yard.sink.not_run(f"{name}.{where}", "out of time from here on")
            return
        shown = number < SHOWN
        seconds = _guarded(yard.sink, name, partial(_one, yard, shape, count, where, shown))
        missing += seconds is None
        total += (seconds or 0.0) * count
    if yard.cuda and not missing:
        note = f"{total * 1e3:.2f} ms, the sum of the medians above times their counts"
        yard.sink.say(f"all {name}", "timed", f"by torch, one {where}: {note}")


def _one(yard: Yard, shape: Shape, count: int, where: str, shown: bool) -> float:
    if isinstance(shape, Attention):
        return _attention(yard, shape, count, where)
    works, nbytes = _works(yard, shape)
    setting = {**_setting(shape), "of": where, "count": count}
    name = type(shape).__name__.lower()
    seconds = yard.times(works)
    # What bounds it: operations, or where those do not count, bytes.
    return yard.sink.timed(
        name,
        seconds,
        setting,
        contender=TORCH,
        nbytes=0 if shape.flop else nbytes,
        flop=shape.flop,
        shown=shown,
    )


def _works(yard: Yard, shape: Shape) -> tuple[list[Work], int]:
    """Calls on different data, and the bytes that one moves at least."""
    works: list[Work] = []
    nbytes = HALF * shape.numbers
    if isinstance(shape, Gemm):
        for _ in range(yard.sets(nbytes)):
            x, w = yard.random(shape.m, shape.k), yard.random(shape.n, shape.k)
            b = yard.random(shape.n)
            works.append(partial(functional.linear, x, w, b))
    elif isinstance(shape, Conv):
        stride = shape.stride
        nhwc = torch.channels_last
        place = (shape.channels, shape.height * stride, shape.width * stride)
        for _ in range(yard.sets(nbytes)):
            x = yard.random(shape.images, *place).to(memory_format=nhwc)
            w = yard.random(shape.filters, shape.channels, 3, 3).to(memory_format=nhwc)
            b = yard.random(shape.filters)
            works.append(partial(functional.conv2d, x, w, b, stride=stride, padding=1))
    elif isinstance(shape, GroupNorm):
        for _ in range(yard.sets(nbytes)):
            x = yard.random(shape.images, shape.channels, shape.pixels, 1)
            x = x.to(memory_format=torch.channels_last)
            w, b = yard.random(2, shape.channels)
            works.append(partial(_group_norm, x, w, b, shape.silu))
    elif isinstance(shape, LayerNorm):
        for _ in range(yard.sets(nbytes)):
            x = yard.random(shape.rows, shape.columns)
            w, b = yard.random(2, shape.columns)
            works.append(partial(functional.layer_norm, x, (shape.columns,), w, b))
    else:
        raise TypeError(f"no work for {shape}")
    return works, nbytes


def _group_norm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, silu: bool) -> torch.Tensor:
    y = functional.group_norm(x, 32, w, b)
    return functional.silu(y) if silu else y


def _attention(yard: Yard, shape: Attention, count: int, where: str) -> float:
    """By every backend that takes it; the best one's time."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def tokens(length: int) -> torch.Tensor:
        """As a projection leaves it, sequence before heads."""
        return yard.random(shape.images, length, shape.heads, shape.width).transpose(1, 2)

    nbytes = HALF * shape.numbers
    inputs = [
        (tokens(shape.queries), tokens(shape.keys), tokens(shape.keys))
        for _ in range(yard.sets(nbytes))
    ]
    best, fastest = float("inf"), "none"
    backends = [SDPBackend.MATH]
    if yard.cuda:
        backends = [
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
        ]
    for backend in backends:
        name = backend.name.lower().removesuffix("_attention")
        works: list[Work] = [
            partial(functional.scaled_dot_product_attention, *rows) for rows in inputs
        ]
        setting = {**_setting(shape), "of": where, "count": count, "backend": name}
        try:
            with sdpa_kernel(backend):
                seconds = yard.times(works)
        except RuntimeError as error:
            _let_go()
            yard.sink.not_run("attention", f"{name} does not take {_setting(shape)}: {error}")
            continue
        yard.sink.timed(
            "attention", seconds, setting, contender=TORCH, flop=shape.flop, shown=False
        )
        if (middle := median(seconds)) < best:
            best, fastest = middle, name
    if best == float("inf"):
        raise RuntimeError("no backend takes this shape")
    if yard.cuda:
        text = f"{best * 1e6:.1f} µs, {shape.flop / best / 1e12:.0f} TFLOP/s by {fastest} of torch"
        yard.sink.say("best attention", "timed", f"{text}; {_setting(shape)}")
    return best


def _setting(shape: Shape) -> dict[str, str | int | float]:
    """The fields of a shape, all of them numbers."""
    return {name: int(getattr(shape, name)) for name in type(shape).__slots__}


def _guarded(sink: Sink, name: str, work: Callable[[], Any]) -> Any:
    """One row; what fails in it is said, and the next goes on. A yardstick is never wrong."""
    try:
        return work()
    except Exception as error:
        _let_go()
        sink.not_run(name, f"{type(error).__name__}: {error}")
        return None


def _let_go() -> None:
    """Drop what a failed row left in the allocator, where the device still answers."""
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise SystemExit(f"the device is lost: {error}") from None
