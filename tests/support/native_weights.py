"""A checkpoint of random tensors, weights of every layout made of it, and these on a simulator."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.engines.native.packing import held_as, to_bfloat16
from diffusion_rt.engines.native.plan import Layout, Source, Weight
from diffusion_rt.engines.native.weights import Weights
from diffusion_rt.kernels.driver import Device, Part
from diffusion_rt.kernels.driver.interface import Stream
from diffusion_rt.kernels.driver.simulator import Simulator

Array = NDArray[Any]
Case = tuple[Layout, list[tuple[int, ...]], str, str]
FILE = "unet/weights.safetensors"


class Checkpoint:
    """One file of tensors in a folder, and the weights made of them."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(seed)
        self.stored: dict[str, tuple[Array, str]] = {}
        self._bytes = bytearray(b"header of odd length,")
        (folder / "unet").mkdir(exist_ok=True)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: str) -> Source:
        values = self.rng.normal(size=shape).astype(np.float32)
        stored = to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)
        return self.put(name, stored, dtype)

    def put(self, name: str, stored: Array, dtype: str) -> Source:
        offset = len(self._bytes)
        self._bytes += stored.tobytes()
        self.stored[name] = stored, dtype
        (self.folder / FILE).write_bytes(self._bytes)
        return Source(name, dtype, stored.shape, FILE, offset, stored.nbytes)

    def weights(self, chosen: list[Case]) -> list[Weight]:
        """Tensors of these shapes, and what is made of them."""
        found = []
        for number, (layout, shapes, stored, dtype) in enumerate(chosen):
            sources = tuple(
                self.tensor(f"{number}.{part}", shape, stored) for part, shape in enumerate(shapes)
            )
            shape = laid_out(layout, shapes, spare=number % 3)
            found.append(Weight(str(number), sources, layout, dtype, shape))
        return found


class Loaded:
    """A simulator with weights on it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: list[Weight],
        constants: dict[str, Array] | None = None,
        seed: int | None = None,
        **how: Any,
    ) -> None:
        self.device = Simulator(seed=seed)
        self.stream = self.device.stream()
        self.weights = Weights(self.device, self.stream, weights, constants or {})
        self.weights.stream_from(checkpoint.folder, **how)

    def read(self, weight: Weight) -> Array:
        """A weight as it is on the device."""
        start = self.weights.arrangement.offsets[weight.name]
        found = self.whole()[start : start + weight.size]
        made: Array = found.view(held_as(weight.dtype)).reshape(weight.shape)
        return made

    def whole(self) -> Array:
        """Every byte of the buffer."""
        return bytes_of(self.device, self.stream, self.weights)


@st.composite
def cases(draw: Any) -> list[Case]:
    """Layout, shapes of the stored tensors, their dtype and the device's."""
    size = st.integers(1, 20)
    dtypes = st.sampled_from(["float32", "float16", "bfloat16"])
    found = []
    for _ in range(draw(st.integers(1, 5))):
        layout = draw(st.sampled_from(["rows", "filters", "doubled", "geglu", "transposed"]))
        if layout == "rows":
            columns = draw(st.sampled_from([(), (draw(size),)]))
            shapes = [(draw(size), *columns) for _ in range(draw(st.integers(1, 3)))]
        elif layout in ("filters", "doubled"):
            side = 3 if layout == "doubled" else draw(st.sampled_from([1, 3]))
            shapes = [(draw(size), draw(size), side, side)]
        elif layout == "geglu":
            shapes = [(16 * draw(st.integers(1, 4)), *draw(st.sampled_from([(), (5,)])))]
        else:
            shapes = [(draw(size), draw(size))]
        found.append((layout, shapes, draw(dtypes), draw(dtypes)))
    return found


def laid_out(layout: Layout, shapes: list[tuple[int, ...]], spare: int) -> tuple[int, ...]:
    """The shape of a weight; `spare` zeros fill up each axis."""
    first = shapes[0]
    if layout == "filters":
        shape = (first[0] + spare, *first[2:], first[1] + spare)
    elif layout == "doubled":
        shape = (first[0] + spare, 16, first[1] + spare)
    elif layout == "transposed":
        shape = tuple(size + spare for size in first[::-1])
    elif layout == "geglu":
        shape = first
    else:
        shape = (
            sum(shape[0] for shape in shapes) + spare,
            *(size + spare for size in first[1:]),
        )
    return shape


def bytes_of(device: Device, stream: Stream, weights: Weights) -> NDArray[np.uint8]:
    """All that lies on a device for some weights."""
    staged = device.pinned(max(weights.nbytes, 1))
    if weights.nbytes:
        first = min(weights.arrangement.offsets, key=weights.arrangement.offsets.__getitem__)
        stream.copy(staged, Part(weights.address(first), weights.nbytes))
    stream.synchronize()
    found = staged.array[: weights.nbytes].copy()
    staged.close()
    return found
