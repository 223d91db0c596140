"""What building engines costs: time, bytes on the disk, memory of the host and of the device."""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_rt.bench.launch import Ran, launch
from diffusion_rt.bench.race import Tell
from diffusion_rt.bench.records import OURS, Origin, Record
from diffusion_rt.bench.spread import spread
from diffusion_rt.engines.errors import Fault

ENGINES = ("trt", "native")
LONGEST = 4 * 3600  # seconds of one build


@dataclass(slots=True)
class Builds:
    """The builds of one model, each in a process of its own with a cache of its own."""

    seconds: list[float] = field(default_factory=list)  # nothing was there before
    again: list[float] = field(default_factory=list)  # all was there
    peak_rss: list[float] = field(default_factory=list)
    written: list[float] = field(default_factory=list)  # bytes
    peak_device: int | None = None


def builds(model: Path, engine: str, options: Sequence[str], repeats: int, tell: Tell) -> Builds:
    """Build all engines of a model anew, and ask for them once more.

    The engines stay where `diffusion-rt build` puts them. Raises BadInput with what it refuses,
    such as a machine without a GPU.
    """
    found = Builds()
    command = [sys.executable, "-P", "-m", "diffusion_rt", "build", str(model)]
    command += ["--engine", engine, "--format", "json", *options]
    for turn in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            place = {"XDG_CACHE_HOME": cache}  # what was measured or compiled before is not here
            tell(f"build: run {turn + 1} of {repeats}")
            ran = launch([*command, "--force"], timeout=LONGEST, more=place)
            told = _told(ran)
            found.seconds.append(ran.seconds)
            found.peak_rss.append(ran.peak_rss)
            found.written.append(sum(int(file["bytes"]) for file in told["files"]))
            if told.get("peak_device") is not None:
                found.peak_device = max(found.peak_device or 0, int(told["peak_device"]))
            tell(f"build: run {turn + 1} of {repeats}, once more")
            found.again.append(launch(command, timeout=LONGEST, more=place).seconds)
    return found


def records_of(
    origin: Origin, found: Builds, setting: dict[str, str | int | float]
) -> list[Record]:
    """Seconds of a build and of one with nothing to do, peak memory, bytes written."""
    peak = int(max(found.peak_rss))
    first, again, memory, written = map(
        spread, (found.seconds, found.again, found.peak_rss, found.written)
    )
    device = found.peak_device
    return [
        origin.record("build", OURS, setting, spread=first, peak_rss=peak, peak_device=device),
        origin.record("build-again", OURS, setting, spread=again),
        origin.record("peak-rss", OURS, setting, unit="bytes", spread=memory),
        origin.record("written", OURS, setting, unit="bytes", spread=written),
    ]


def _told(ran: Ran) -> dict[str, Any]:
    """What a build says of itself: an object in JSON behind whatever libraries print."""
    lines = ran.said.splitlines()
    start = next((place for place, line in enumerate(lines) if line.startswith("{")), 0)
    try:
        found = json.loads("\n".join(lines[start:]))
        if not all(type(file["bytes"]) is int for file in found["files"]):
            raise ValueError
    except (ValueError, TypeError, KeyError):
        raise Fault(f"build says nothing of its files, but: {lines[-1][:200]}") from None
    return dict(found)
