"""What has to lie on the disk before anything can be drawn, in bytes: records of both sides.

Ours are the packages and this one, with the model that ships. diffusers draws the same picture with
the same checkpoint, so its files count on that side too.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from diffusion_rt.bench import installed
from diffusion_rt.bench.records import OURS, Origin, Record
from diffusion_rt.bench.spread import spread
from diffusion_rt.bench.startup import PEER, ratio
from diffusion_rt.runtime.pipeline import SHIPPED

# Of what pip would download or has installed, the packages whose versions are told.
TOLD = (
    *("torch", "diffusers", "transformers", "onnxruntime-gpu", "tensorrt", "cuda-bindings"),
    *("nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cuda-nvrtc", "numpy"),
)
# The engine that a set is for, by the first of these packages that is in it.
ENGINES = {"tensorrt": "trt", "onnxruntime-gpu": "ort", "onnxruntime": "ort"}


def records_of_environment(origin: Origin) -> list[Record]:
    """Of what is installed here, to draw on a CPU."""
    ours = installed.size_of(installed.closure(installed.OURS)) + installed.own_size()
    theirs = installed.size_of(installed.closure(installed.DIFFUSERS))
    cuda = any(name.startswith("nvidia-") for name in installed.closure(["torch"]))
    setting = {"torch": "cuda" if cuda else "cpu"}
    return _records(origin, "installed", setting, ours, theirs)


def records_of_folders(origin: Origin, ours: Path, theirs: Path) -> list[Record]:
    """Of two folders into which pip installed what it takes to draw on a GPU."""
    mine, others = installed.versions_in(ours), installed.versions_in(theirs)
    own = 0 if "diffusion-rt" in mine else installed.own_size()
    sizes = installed.size_below(ours) + own, installed.size_below(theirs)
    return _records(*_of_a_gpu(origin, "installed", mine, others), *sizes)


def records_of_downloads(origin: Origin, ours: Path, theirs: Path) -> list[Record]:
    """Of two folders into which pip downloaded what it takes to draw on a GPU."""
    mine, others = installed.versions_of_files(ours), installed.versions_of_files(theirs)
    own = 0 if "diffusion-rt" in mine else installed.own_wheel()
    sizes = installed.size_below(ours) + own, installed.size_below(theirs)
    return _records(*_of_a_gpu(origin, "download", mine, others), *sizes)


def _of_a_gpu(
    origin: Origin, measure: str, ours: Mapping[str, str], theirs: Mapping[str, str]
) -> tuple[Origin, str, dict[str, str]]:
    """The versions of both sides, and what the set is for."""
    engine = next((name for one, name in ENGINES.items() if one in ours), "native")
    named = {**theirs, **ours}
    versions = {"diffusion-rt": origin.versions["diffusion-rt"]}
    versions |= {name: version for name, version in named.items() if name in TOLD}
    return replace(origin, versions=versions), measure, {"torch": "cuda", "engine": engine}


def _records(
    origin: Origin, measure: str, setting: Mapping[str, str], ours: int, theirs: int
) -> list[Record]:
    theirs += installed.checkpoint_size(SHIPPED.resolve())
    return [
        *(
            origin.record(measure, name, setting, unit="bytes", spread=spread([size]))
            for name, size in ((OURS, ours), (PEER, theirs))
        ),
        ratio(origin, measure, dict(setting), [ours], [theirs]),
    ]
