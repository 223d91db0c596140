"""A part of the GPU run beside the others: what full-size SDXL takes of the processor alone.

Weights are generated, and the host computes what the device is held against; whoever needs one of
them first waits for it, or makes it itself.
"""

import fcntl
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from diffusion_rt.bench import bare
from diffusion_rt.bench.gpu_bench import Array
from diffusion_rt.bench.gpu_drawing import decoded, evaluate
from diffusion_rt.bench.gpu_rows import Sink
from diffusion_rt.engines.artefact import writing
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native.backend import open_host
from diffusion_rt.engines.protocol import Engine
from diffusion_rt.engines.spec import Precision

SHIPPED = Path(__file__).resolve().parent.parent / "runtime" / "models" / "shapes-xl"
NO_GRAPHS = "no graphs; give --graphs DIR, made by: diffusion-rt bench graphs --model … --keep DIR"
FILLED = "model"  # the folder with weights, in the folder of records
SIDE, TINY_SIDE = 16, 4  # of the latents whose prediction and picture are held against the host's

# What is checked, as it is had of a model's engines for latents of a side.
Load = Callable[[str], Engine]
CHECKED: dict[str, Callable[[ModelFolder, Load, int], Array]] = {
    "unet": lambda folder, load, side: evaluate(load, side),
    "vae_decoder": lambda folder, load, side: decoded(load, side, folder.manifest.vae.factor),
}


def prepare(sink: Sink) -> None:
    """Weights, then the truths of everything that is checked."""
    folder = model_of(sink, "prepare")
    if folder is not None:
        for name in CHECKED:
            truths(sink, folder, name)


def model_of(sink: Sink, name: str) -> ModelFolder | None:
    """The model, its weights generated if they are not there; None, and a row, without graphs."""
    if sink.graphs is None and not sink.chip.simulated:
        sink.not_run(name, NO_GRAPHS)
        return None
    given = sink.graphs or SHIPPED
    if not bare.is_bare(given):
        return open_model(given)
    if sink.output is None:
        sink.not_run(name, "nowhere to generate weights into")
        return None
    target = sink.output / FILLED
    with _alone(sink, FILLED):
        if not (target / "manifest.json").exists():
            begun = time.perf_counter()
            count = bare.fill(given, target)
            seconds = time.perf_counter() - begun
            sink.say("weights", "timed", f"{count:,} generated in {seconds:.1f} s", shown=False)
    return open_model(target)


def side_of(sink: Sink) -> int:
    """The side of the latents that are checked."""
    return TINY_SIDE if sink.chip.simulated else SIDE


def truths(sink: Sink, folder: ModelFolder, name: str) -> tuple[Array, Array]:
    """Of what CHECKED names the host's result in float32, and with the device's roundings."""
    side = side_of(sink)

    def on_host(precision: Precision) -> Array:
        return CHECKED[name](folder, open_host(folder, precision=precision).load, side)

    def computed() -> tuple[Array, Array]:
        begun = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:  # most of it is weights on their way
            exact, rounded = pool.map(on_host, ("float32", "float16"))
        print(f"{name}: the host took {time.perf_counter() - begun:.1f} s", file=sys.stderr)
        return exact, rounded

    if sink.output is None:
        return computed()
    kept = sink.output / f"truth-{name}-{side}.npz"
    with _alone(sink, kept.stem):
        if not kept.exists():
            exact, rounded = computed()
            with writing(kept) as file:
                np.savez(file, exact=exact, rounded=rounded)
        with np.load(kept, allow_pickle=False) as found:
            return found["exact"], found["rounded"]


@contextmanager
def _alone(sink: Sink, what: str) -> Iterator[None]:
    """One process at a time; the others wait."""
    assert sink.output is not None
    with (sink.output / f".{what}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
