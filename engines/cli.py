"""The sub-command `build`: engines of a model folder, for the GPU at hand."""

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_rt import __version__
from diffusion_rt.bars import progress_bars
from diffusion_rt.command import Parser, plain
from diffusion_rt.engines.device.errors import translated
from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.engines.trt.buckets import Bucket, parse_buckets
from diffusion_rt.engines.trt.build import Built, Summary, build, scratch_by_profile
from diffusion_rt.engines.trt.library import require_tensorrt
from diffusion_rt.engines.trt.options import BuilderOptions, Options
from diffusion_rt.engines.trt.profiles import Coverage, parse_batch, parse_chunks
from diffusion_rt.kernels import driver

STAGES = {"verify": "hashing the model", "check": "hashing what is there"}
STAGES |= {graph: f"building {graph}" for graph in GRAPHS}

EXAMPLES = """examples:
  diffusion-rt build ./sdxl --engine trt                        (the nine usual sizes, one picture)
  diffusion-rt build ./sdxl --engine trt --buckets 1024x1024,832x1216 --batch 1:1:4
  diffusion-rt build ./sdxl --engine trt --buckets sdxl-all --optimization-level 5 --workspace 8G
  diffusion-rt build ./sdxl --engine trt --stripped --hardware-compatibility same
  diffusion-rt build ./sdxl --engine native --buckets 1024x1024

What is there already and fits is kept; of what does not, it says why. Engines lie in DIR/engines,
or in the user's cache where DIR cannot be written. Ctrl-C keeps the engines that are finished.
Exit status: 0, 2 for bad input, 1 for a fault, 130 after Ctrl-C.
"""
TENSORRT_ONLY = (
    "chunks",
    "precision",
    "vae_precision",
    "attention",
    "float32_attention",
    "optimization_level",
    "workspace",
    "profile_memory",
    "tiling",
    "auxiliary_streams",
    "hardware_compatibility",
    "version_compatible",
    "stripped",
    "no_tf32",
    "build_route",
    "trust",
)
_ARCH = re.compile(r"[0-9]{2,3}", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,6})([KMGT]?)", re.ASCII)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def main(argv: Sequence[str]) -> int:
    """Build the engines of one model; the exit status. Raises BadInput and Fault."""
    parser = Parser(
        prog="diffusion-rt build",
        usage="diffusion-rt build DIR --engine trt|native [flags]",
        description="Build engines from an exported model, for the GPU of this machine.",
        epilog=EXAMPLES,
    )
    add_arguments(parser)
    found = parser.read(argv)
    if found.engine == "native":
        return _native(found)
    if found.archs is not None:
        raise BadInput("--archs is for --engine native; TensorRT builds for the GPU at hand")
    if found.pack_weights:
        raise BadInput("--pack-weights is for --engine native; TensorRT's engines hold theirs")
    if found.libraries:
        raise BadInput("--libraries is for --engine native; TensorRT brings its own")
    if not found.overlap:
        raise BadInput("--no-overlap is for --engine native; leave it out")
    return _tensorrt(found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the arguments of `build`."""
    add = parser.add_argument
    add("DIR", type=Path, help="the folder that diffusion-rt export made")
    add("--engine", required=True, choices=("trt", "native"), help="which engine to build for")
    add(
        "--buckets",
        metavar="LIST",
        help="sizes to build for: sdxl (nine), sdxl-all (all that SDXL was trained with), sizes "
        "such as 1024x1024,832x1216 (width first), or a mixture; default: sdxl where 1024x1024 is "
        "the model's size, else the model's own size",
    )
    add(
        "--batch",
        metavar="MIN:OPT:MAX",
        default="1",
        help="pictures drawn at once: the fewest, those to be fastest at, the most; default: 1",
    )
    add("--force", action="store_true", help="build anew what is there already")
    add(
        "--format",
        choices=("text", "json"),
        default="text",
        help="json prints one object, an error included, on standard output",
    )
    native = parser.add_argument_group("for --engine native")
    native.add_argument(
        "--archs", metavar="LIST", help="chips to compile for, such as 80,90; default: the one here"
    )
    native.add_argument(
        "--libraries",
        action="store_true",
        help="measure cuBLASLt and cuDNN too, where nvmath-python or nvidia-cudnn-frontend is "
        "installed, and run them where they are faster than our kernels; until a build without "
        "this flag",
    )
    native.add_argument(
        "--no-overlap",
        dest="overlap",
        action="store_false",
        help="from sm_90 on, do not try a step whose launches overlap; they are off then",
    )
    native.add_argument(
        "--pack-weights",
        action="store_true",
        help="keep the weights as the GPU wants them too, in DIR/engines or the user's cache: as "
        "many bytes on disk as in its memory (7 GB for SDXL), which a start reads without "
        "arranging them; of a float32 checkpoint half the bytes",
    )
    add_tensorrt_arguments(parser.add_argument_group("for --engine trt"))


def add_tensorrt_arguments(group: "argparse._ArgumentGroup") -> None:
    """Give `group` the arguments that only TensorRT has; None where one is not given."""
    add = group.add_argument
    add(
        "--chunks",
        metavar="MIN:OPT:MAX",
        help="length of prompts, in chunks of the text encoder's 77 tokens; default: 1:1:3",
    )
    add(
        "--precision",
        choices=("float16", "float32"),
        help="arithmetic of the UNet and the text encoders; default: float16",
    )
    add(
        "--vae-precision",
        choices=("bfloat16", "float32"),
        help="arithmetic of the VAE; default: bfloat16",
    )
    add(
        "--attention",
        choices=("tensorrt", "plugin"),
        help="the UNet's attention: TensorRT's own, or our kernel as a plugin; default: tensorrt",
    )
    add(
        "--float32-attention",
        action=argparse.BooleanOptionalAction,
        help="TensorRT's fused attention sums in float32: slower, and as the reference does; "
        "default: from TensorRT 11.3 on, which is the first that can",
    )
    add(
        "--optimization-level",
        type=int,
        metavar="N",
        help="0 builds fastest, 5 searches longest; default: 3",
    )
    add("--workspace", metavar="SIZE", help="the most scratch memory of a tactic, such as 4G")
    add(
        "--profile-memory",
        type=float,
        metavar="SHARE",
        help="of the weights, that each size after the first may hold again in a layout of its "
        "own: 0 to 1; default: 0, all sizes share one",
    )
    add(
        "--tiling",
        choices=("none", "fast", "moderate", "full"),
        help="how long to search for operations that share the L2 cache; default: none",
    )
    add("--auxiliary-streams", type=int, metavar="N", help="streams beside the main one, 0 to 16")
    add(
        "--hardware-compatibility",
        choices=("none", "same", "ampere+"),
        help="run on: this model of GPU alone, its compute capability, all from Ampere on (slower)",
    )
    add(
        "--version-compatible",
        action="store_true",
        default=None,
        help="run on later TensorRT of the same major version too",
    )
    add(
        "--stripped",
        action="store_true",
        default=None,
        help="leave the weights out of the engines; they are read from DIR at every start",
    )
    add(
        "--no-tf32",
        action="store_true",
        default=None,
        help="full float32 products where the arithmetic is float32",
    )
    add(
        "--build-route",
        metavar="KNOBS",
        help="of TensorRT's compiler, written --build-route=-conv_use_long_w=off",
    )
    add(
        "--trust",
        action="store_true",
        default=None,
        help="keep engines of DIR that somebody else built, where they fit, and run them: they are "
        "native code; remembered for these very files",
    )


def _tensorrt(found: argparse.Namespace) -> int:
    """Build TensorRT engines; what can be wrong is looked at in the order of what it costs."""
    options = options_of(found)
    batch, chunks = parse_batch(found.batch), parse_chunks(found.chunks or "1:1:3")
    buckets = parse_buckets(found.buckets) if found.buckets is not None else None
    model = open_model(found.DIR)
    coverage = Coverage(buckets=buckets or _default_buckets(model), batch=batch, chunks=chunks)
    require_tensorrt()
    started = time.perf_counter()
    quiet = found.format == "json"
    with (
        translated("the GPU"),
        driver.open_device() as device,
        progress_bars(STAGES, quiet=quiet) as report,
    ):
        summary = build(
            model,
            coverage,
            options,
            device=device,
            made_by=f"diffusion-rt {__version__}",
            force=found.force,
            trust=bool(found.trust),
            report=report,
            say=(lambda line: None) if quiet else _say,
        )
    seconds = time.perf_counter() - started
    if quiet:
        print(json.dumps(_summary(summary, seconds), indent=1))
    else:
        _tell(summary, seconds)
    return 0


def options_of(found: argparse.Namespace) -> Options:
    """The options that the flags spell. Raises BadInput."""
    builder: dict[str, Any] = {
        "optimization_level": found.optimization_level,
        "workspace_bytes": _bytes("--workspace", found.workspace),
        "profile_memory": found.profile_memory,
        "tiling": found.tiling,
        "auxiliary_streams": found.auxiliary_streams,
        "compatibility": found.hardware_compatibility,
        "version_compatible": found.version_compatible,
        "stripped": found.stripped,
        "tf32": False if found.no_tf32 else None,
        "build_route": found.build_route,
    }
    whole: dict[str, Any] = {
        "precision": found.precision,
        "vae_precision": found.vae_precision,
        "wide_attention": found.float32_attention,
        "attention": {"unet_step": found.attention} if found.attention else None,
    }
    given = {name: value for name, value in whole.items() if value is not None}
    settings = {name: value for name, value in builder.items() if value is not None}
    return Options(**given, builder=BuilderOptions(**settings))


def _default_buckets(model: ModelFolder) -> tuple[Bucket, ...]:
    defaults = model.manifest.defaults
    own = Bucket(defaults.width, defaults.height)
    return parse_buckets("sdxl") if own == Bucket(1024, 1024) else (own,)


def _bytes(flag: str, text: str | None) -> int | None:
    """A number of bytes, such as `4G`."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise BadInput(f"{flag}: got {shown(text)}, wants a number of bytes such as 512M or 4G")
    return int(match[1]) * _UNITS[match[2]]


def _native(found: argparse.Namespace) -> int:
    """Hand over to the native engine's own builder."""
    for name in TENSORRT_ONLY:
        if getattr(found, name) is not None:
            raise BadInput(f"--{name.replace('_', '-')} is for --engine trt; leave it out")
    batch = parse_batch(found.batch)
    buckets = parse_buckets(found.buckets) if found.buckets is not None else None
    archs = parse_archs(found.archs) if found.archs is not None else None
    model = open_model(found.DIR)
    defaults = model.manifest.defaults
    sizes = [(b.width, b.height) for b in buckets or (Bucket(defaults.width, defaults.height),)]
    from diffusion_rt.engines.native import build as native

    started = time.perf_counter()
    quiet = found.format == "json"
    with translated("the GPU"), progress_bars(STAGES, quiet=quiet) as report:
        files = native.build(
            model,
            buckets=sizes,
            images=tuple(dict.fromkeys((batch.opt, batch.min, batch.max))),
            archs=archs,
            force=found.force,
            libraries=found.libraries,
            overlap=found.overlap,
            pack_weights=found.pack_weights,
            progress=report,
        )
    seconds = time.perf_counter() - started
    if quiet:
        told = [
            {
                "name": file.name,
                "path": str(file.path),
                "bytes": file.nbytes,
                "seconds": file.seconds,
                "kept": file.kept,
            }
            for file in files
        ]
        summary = {"engine": "native", "files": told, "peak_device": None}
        print(json.dumps({**summary, "seconds": round(seconds, 3)}, indent=1))
    else:
        for file in files:
            how = "kept" if file.kept else f"built in {file.seconds:.1f} s"
            print(f"{plain(file.name):<40} {_size(file.nbytes):>10}  {how}")
        print(f"{len(files)} files in {seconds:.0f} s")
    return 0


def parse_archs(text: str) -> tuple[int, ...]:
    """Chips as `--archs` spells them: compute capabilities times ten. Raises BadInput."""
    words = text.split(",")
    if len(text) > 100 or not all(_ARCH.fullmatch(word.strip()) for word in words):
        raise BadInput(f"--archs: got {shown(text)}, wants chips such as 80,90")
    return tuple(dict.fromkeys(int(word) for word in words))


def _say(line: str) -> None:
    print(plain(line), file=sys.stderr)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def _tell(summary: Summary, seconds: float) -> None:
    """The summary for people."""
    for built in summary.built:
        header = built.header
        how = "kept" if built.kept else f"built in {header.seconds:.1f} s"
        scratch = scratch_by_profile(header)
        only = f", {_size(scratch['all'])} to run" if "all" in scratch else ""
        print(f"{header.key.graph:<15} {_size(header.plan_bytes):>10}  {how}{only}")
        if not only:
            for name, count in scratch.items():
                print(f"  {name:<13} {_size(count):>10}  to run")
    size = sum(built.header.plan_bytes for built in summary.built)
    peak = summary.peak_device_bytes
    most = f", at most {_size(peak)} of the GPU" if peak else ""
    print(f"{plain(str(summary.folder))}: {_size(size)} in {seconds:.0f} s{most}")


def _summary(summary: Summary, seconds: float) -> dict[str, object]:
    """The summary for machines."""
    machine = summary.machine
    return {
        "engine": "trt",
        "folder": str(summary.folder),
        "gpu": machine.gpu,
        "arch": machine.arch,
        "driver": machine.driver,
        "tensorrt": machine.tensorrt,
        "files": [_file(built) for built in summary.built],
        "peak_device": summary.peak_device_bytes,
        "seconds": round(seconds, 3),
    }


def _file(built: Built) -> dict[str, object]:
    header = built.header
    return {
        "name": built.path.name,
        "graph": header.key.graph,
        "bytes": header.plan_bytes,
        "seconds": 0.0 if built.kept else header.seconds,
        "kept": built.kept,
        "reasons": list(built.reasons),
        "scratch_bytes": dict(scratch_by_profile(header)),
    }
