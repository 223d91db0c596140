"""Whether kernels that start before the one ahead has ended are right, and faster: tried here.

One graph at one size is captured with such launches and without (programmatic dependent launch,
sm_90 and newer). Both are replayed on two sets of inputs by turns, so that what is read before it
was written is of the other set; results must be equal bit for bit.
"""

import logging
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.device.memory import Arrays, Layout, Pinned
from diffusion_rt.engines.device.protocol import DeviceArray
from diffusion_rt.engines.errors import OutOfMemory
from diffusion_rt.engines.native.graphs import NativeGraphs
from diffusion_rt.engines.native.measure import REPEATS
from diffusion_rt.engines.native.tactics import Tactics
from diffusion_rt.kernels import driver

LOOP = "unet_step"  # the graph that is tried: it runs once a step
FIRST_ARCH = 90  # the first chip that can
SETS = 2  # of inputs

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it; seconds of one replay."""

    same: bool  # every result, and finite
    apart: float
    overlapped: float

    @property
    def taken(self) -> bool:
        """Whether launches are to overlap."""
        return self.same and self.overlapped < self.apart


def choose_overlap(
    graphs: NativeGraphs, graph: str, sizes: Mapping[str, int], tactics: Tactics
) -> None:
    """Note in `tactics`, saved, whether launches overlap; off where the trial does not come back.

    A result that is another is said.
    """
    tactics.overlap = False
    tactics.save()
    try:
        found = trial(graphs, graph, sizes)
    except (OutOfMemory, driver.OutOfMemory) as short:
        tactics.overlap = None  # nothing was found out: the next build tries
        tactics.save()
        _LOG.warning("launches that overlap were not tried: %s: %s", graph, short)
        return
    except driver.DeviceError as error:
        _LOG.warning("launches that overlap stay off: %s: %s", graph, error)
        return
    if not found.same:
        what = "gives another result, or none that is finite"
        name = graphs.gpu.device.name
        _LOG.warning("launches that overlap stay off: on %s %s %s", name, graph, what)
    tactics.overlap = found.taken
    tactics.save()


def trial(graphs: NativeGraphs, graph: str, sizes: Mapping[str, int]) -> Trial:
    """Run a graph both ways, on random inputs. Raises DeviceError where a launch is refused."""
    device, engine = graphs.gpu.device, graphs.open(graph)
    arrays, sent, fetched = Arrays(device), Pinned(device), Pinned(device)
    plan = graphs.loaded(graph).planned(sizes).plan
    specs = {**engine.inputs, **engine.outputs}
    bound: Layout = {name: (plan.buffers[name].shape, spec.dtype) for name, spec in specs.items()}
    with ExitStack() as held:
        stream = held.enter_context(device.stream())
        start, end = (held.enter_context(device.event(timed=True)) for _ in range(2))
        for one in (arrays, sent, fetched, engine):
            held.enter_context(closing(one))
        held.callback(stream.synchronize)
        (places,) = arrays.make("what it measures with", bound)
        given = [_numbers({name: places[name] for name in engine.inputs}, n) for n in range(SETS)]
        outputs = [places[name] for name in engine.outputs]
        replays, before = {}, graphs.overlap
        try:
            for overlap in (False, True):
                graphs.overlap = (graph,) if overlap else ()
                engine.bind(places)
                sent.send(stream, [(places[name], given[0][name]) for name in engine.inputs])
                engine.enqueue(stream)
                stream.synchronize()
                captured = stream.capture(lambda: engine.enqueue(stream))
                replays[overlap] = held.enter_context(captured)
        finally:
            graphs.overlap = before
        times: dict[bool, list[float]] = {False: [], True: []}
        wanted: dict[int, list[bytes]] = {}
        same = True
        for _ in range(REPEATS):
            for (overlap, replay), number in product(replays.items(), range(SETS)):
                sent.send(stream, [(places[name], given[number][name]) for name in engine.inputs])
                for place in outputs:
                    stream.fill(place, 0xFF)  # no finite number
                stream.record(start)
                replay.replay(stream)
                stream.record(end)
                found = [raw.tobytes() for raw in fetched.fetch(stream, outputs)]
                times[overlap].append(end.elapsed_ms(start) / 1e3)
                same = same and found == wanted.setdefault(number, found)
        same = same and all(map(_finite, outputs, wanted[0]))
    return Trial(same, median(times[False]), median(times[True]))


def _numbers(places: Mapping[str, DeviceArray], seed: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(place.shape, np.float32).astype(place.dtype)
        for name, place in places.items()
    }


def _finite(place: DeviceArray, raw: bytes) -> bool:
    return bool(np.isfinite(np.frombuffer(raw, place.dtype)).all())
