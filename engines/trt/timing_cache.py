"""TensorRT's timings of tactics, kept for all builds of all models on one kind of GPU.

offset  bytes
     0      8  b"DRT-TIME"
     8     32  sha256 of what follows
    40      …  the cache as TensorRT serialised it
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from diffusion_rt.engines.artefact import locked, read_bytes, remove_partials, writing
from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.trt.key import Machine
from diffusion_rt.engines.trt.places import target_name

MAGIC = b"DRT-TIME"
MAX_BYTES = 1 << 30
WAIT_SECONDS = 10.0  # for another build to write its timings

_START = len(MAGIC) + 32


class TimingCache:
    """One file of timings; what cannot be read counts as none, and is written anew."""

    def __init__(self, path: Path) -> None:
        """Timings in the file `path`, which need not be there."""
        self.path = path
        self.damaged = False  # whether what was there could not be used
        self.unwritten = ""  # why timings could not be written

    def read(self) -> bytes:
        """The timings there are, as TensorRT takes them; nothing where there are none."""
        try:
            content = read_bytes(self.path, MAX_BYTES, follow_links=False)
        except BadInput:
            self.damaged = self.damaged or self.path.exists() or self.path.is_symlink()
            return b""
        timings = content[_START:]
        if content[:_START] == MAGIC + hashlib.sha256(timings).digest():
            return timings
        self.damaged = True
        return b""

    def write(self, timings: bytes) -> None:
        """Replace the timings, whole or not at all. Raises BadInput where that cannot be."""
        with writing(self.path) as file:
            file.write(MAGIC + hashlib.sha256(timings).digest() + timings)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other builds from writing for the block, which is short. Raises BadInput."""
        deadline = time.monotonic() + WAIT_SECONDS
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(locked(self.path.parent, "timings", key="timings"))
                    break
                except BadInput:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
            yield


def timing_cache_for(machine: Machine) -> TimingCache:
    """The timings of a GPU under one version of TensorRT: no other can use them.

    What a build that was killed left half written is removed.
    """
    folder = cache_folder("trt")
    remove_partials(folder)
    return TimingCache(folder / f"{target_name(machine, 'none')}-{machine.tensorrt}.timings")
