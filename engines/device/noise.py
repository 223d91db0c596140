"""Fresh noise on its way to the device: copied beside the evaluations, not between them."""

from contextlib import ExitStack, closing

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.device.memory import Pinned
from diffusion_rt.engines.device.protocol import AHEAD
from diffusion_rt.kernels.driver import Device
from diffusion_rt.kernels.driver.interface import Span, Stream


class NoiseStream:
    """Copies rows of noise on a stream of its own; the evaluation that reads one waits for it.

    A row goes through pinned memory of its own turn, which may be used again once the evaluation of
    `AHEAD` turns ago is done: the host is never further ahead.
    """

    def __init__(self, device: Device) -> None:
        """Take a stream and its events; the memory comes with `reserve`."""
        with ExitStack() as held:
            self._stream = held.enter_context(device.stream())
            self._sent = [held.enter_context(device.event()) for _ in range(AHEAD)]
            self._pinned = [held.enter_context(closing(Pinned(device))) for _ in range(AHEAD)]
            self._held = held.pop_all()

    def reserve(self, nbytes: int) -> None:
        """Let each row have so many bytes; no copy may be under way."""
        for pinned in self._pinned:
            pinned.reserve(nbytes)

    def send(self, reader: Stream, turn: int, row: Span, values: NDArray[np.float32]) -> None:
        """Copy `values` to a row that `reader` may read from here on, and not before."""
        place = turn % AHEAD
        self._pinned[place].send(self._stream, [(row, values)])
        self._stream.record(self._sent[place])
        reader.wait(self._sent[place])

    def synchronize(self) -> None:
        """Wait for every copy."""
        self._stream.synchronize()

    def close(self) -> None:
        """Give everything back; no copy may be under way."""
        self._held.close()
