"""The sub-commands `generate`, `inspect` and `doctor`: arguments in, words and files out."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from diffusion_rt.command import Parser, Partly, escaped
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime.flags import add_flags, byte_size, request_of, whole
from diffusion_rt.runtime.output import check_output
from diffusion_rt.runtime.progress import progress_bars

LONGEST_PROMPT = 1 << 20  # bytes read from standard input

GENERATE = """examples:
  diffusion-rt generate "a large red circle on a white background"
  diffusion-rt generate "two green squares" --steps 20 --sampler euler --seed 7 --output squares.png
  diffusion-rt generate "a small star" --images 4 --output stars/          (stars/picture-1.png …)
  diffusion-rt generate "a lighthouse" --model ./sdxl --width 1216 --height 832
  cat prompt.txt | diffusion-rt generate -
  diffusion-rt generate -- "-- a prompt that begins with a dash"

Every setting is stored in the PNG; `diffusion-rt inspect FILE` prints the command that draws it
again. Exit status: 0, 2 for bad input, 1 for a fault, 130 after Ctrl-C, 143 after SIGTERM, 141
where the reader of standard output left.
"""
INSPECT = """examples:
  diffusion-rt inspect picture-1.png      settings, and the command that draws it again
  diffusion-rt inspect ./sdxl --verify    a model folder, each file held against its sha256
  diffusion-rt inspect ./sdxl --plan --bucket 1152x896 --chip rtx-4090
                                          what a picture costs there: kernels, FLOPs, bytes, memory
"""
DOCTOR = """Exit status: 0 where pictures can be drawn, else 1.
"""


def generate(argv: Sequence[str]) -> int:
    """Draw pictures and print the name of each. Raises BadInput before any work where it can."""
    found = generate_parser().read(argv)
    found.prompt = _prompt(found)
    request = request_of(found)
    if found.engine == "null":
        raise BadInput(
            "engine null computes nothing and is for tests; take auto, ort, trt or native"
        )
    check_output(found.output, request.num_images_per_prompt, overwrite=found.overwrite)

    from diffusion_rt.engines.choose import choose
    from diffusion_rt.runtime.picture import save_pictures
    from diffusion_rt.runtime.pipeline import Pipeline

    choose(found.engine, provider=found.provider)  # a wrong name is told before a file is read
    started = time.perf_counter()
    quiet = found.format == "json"
    with progress_bars(quiet=quiet) as progress:
        pipeline = Pipeline.open(
            found.model,
            engine=found.engine,
            threads=found.threads,
            provider=found.provider,
            tiling=found.vae_tiling,
            memory=found.memory,
            trust=found.trust,
            size=(request.width, request.height) if request.width and request.height else None,
            progress=progress,
        )
    with pipeline:
        choice = choose(found.engine, provider=found.provider, model=pipeline.folder)
        if found.format == "text":
            print(f"engine {choice}", file=sys.stderr)
            if found.memory is not None and (forecast := pipeline.settle(request).forecast):
                print(f"memory at most {forecast.told(found.memory)}", file=sys.stderr)
        with progress_bars(quiet=quiet) as progress:
            result = pipeline.generate(request, progress=progress)
    drawn: list[dict[str, object]] = []
    try:
        for path, seed, image in zip(
            save_pictures(
                result.images,
                found.output,
                overwrite=found.overwrite,
                strip_metadata=found.strip_metadata,
            ),
            result.seeds,
            result.images,
            strict=True,
        ):
            named = {"file": str(path), "seed": seed, "width": image.width, "height": image.height}
            drawn.append(named)
            if found.format == "text":
                _print_name(path)
    except (Exception, KeyboardInterrupt) as error:
        if found.format == "json":
            raise Partly(images=drawn) from error
        raise
    if found.format == "json":
        seconds = time.perf_counter() - started
        print(json.dumps({"images": drawn, "engine": str(choice), "seconds": round(seconds, 3)}))
    return 0


def inspect(argv: Sequence[str]) -> int:
    """Print what a model folder or a PNG says of itself."""
    parser = Parser(
        prog="diffusion-rt inspect",
        usage="diffusion-rt inspect PATH [flags]",
        description=inspect.__doc__,
        epilog=INSPECT,
    )
    parser.add_argument("PATH", type=Path, help="a PNG, or a folder that export made")
    parser.add_argument(
        "--verify", action="store_true", help="hash every byte of a model's weights"
    )
    group = parser.add_argument_group("what a picture costs")
    group.add_argument("--plan", action="store_true", help="the native engine's plans of a model")
    group.add_argument(
        "--bucket", metavar="WxH", help="size of the picture; default: the model's own"
    )
    group.add_argument("--batch", type=whole, metavar="N", help="pictures at once; default: 1")
    group.add_argument("--chip", metavar="NAME", help="h200, a100, rtx-4090, orin …; default: h200")
    group.add_argument("--graph", metavar="NAME", help="listed by kind; default: unet_step")
    _add_format(parser)
    found = parser.read(argv)
    if found.plan and found.verify:
        raise BadInput("--plan reads no weights, --verify all of them; give one of the two")
    if found.plan:
        return _inspect_plan(found)
    for flag in ("bucket", "batch", "chip", "graph"):
        if getattr(found, flag) is not None:
            raise BadInput(f"--{flag} says what --plan is for; give --plan too")

    from diffusion_rt.runtime.inspect import inspect as look
    from diffusion_rt.runtime.inspect import report

    with progress_bars(quiet=found.format == "json") as progress:
        known = look(found.PATH, verify=found.verify, progress=progress)
    print(json.dumps(known, indent=2) if found.format == "json" else report(known))
    return 0


def _inspect_plan(found: argparse.Namespace) -> int:
    from diffusion_rt.runtime.inspect_plan import DETAILED, inspect_plan, report

    chosen = {"bucket": found.bucket, "images": found.batch, "chip": found.chip}
    given = {name: value for name, value in chosen.items() if value is not None}
    known = inspect_plan(found.PATH, **given)
    text = report(known, DETAILED if found.graph is None else found.graph)
    print(json.dumps(known, indent=2) if found.format == "json" else text)
    return 0


def doctor(argv: Sequence[str]) -> int:
    """Print what this machine has and lacks; 0 where pictures can be drawn, else 1."""
    parser = Parser(prog="diffusion-rt doctor", description=doctor.__doc__, epilog=DOCTOR)
    parser.add_argument("--online", action="store_true", help="also try to reach the hub")
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="also look at the engines built for a model"
    )
    _add_format(parser)
    found = parser.read(argv)

    from diffusion_rt.runtime.doctor import examine, report

    findings = examine(online=found.online, model=found.model)
    able = all(finding.state != "wrong" for finding in findings)
    if found.format == "json":
        lines = [asdict(finding) for finding in findings]
        print(json.dumps({"able": able, "findings": lines}, indent=2))
    else:
        print(report(findings))
        print("\nPictures can be drawn." if able else "\nPictures cannot be drawn: mend each ✗.")
    return 0 if able else 1


def generate_parser() -> Parser:
    """The arguments of `generate`."""
    parser = Parser(
        prog="diffusion-rt generate",
        usage="diffusion-rt generate [PROMPT] [flags]",
        description="Draw pictures from a prompt; prints the name of each.",
        epilog=GENERATE,
    )
    parser.add_argument(
        "PROMPT",
        nargs="?",
        help="what to draw; `-` reads it from standard input; put `--` before one that begins "
        "with a dash",
    )
    parser.add_argument(
        "--model", metavar="DIR", help="an exported model; default: the one shipped"
    )
    parser.add_argument(
        "--output",
        metavar="FILE|DIR",
        default="./",
        help="a name that ends in "
        ".png (several pictures: NAME-1.png …), or a folder for picture-1.png …; default: here",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files of that name")
    parser.add_argument(
        "--strip-metadata", action="store_true", help="store no settings in the PNG"
    )
    _add_format(parser)
    add_flags(parser)
    group = parser.add_argument_group("engine")
    group.add_argument("--engine", metavar="NAME", default="auto", help="auto, ort, trt or native")
    group.add_argument("--threads", type=whole, metavar="N", help="CPU threads; default: all cores")
    group.add_argument(
        "--provider", metavar="NAME", help="cpu or cuda of ort, cuda or host of native"
    )
    group.add_argument(
        "--memory",
        type=byte_size,
        metavar="SIZE",
        help="device memory that the native engine may take, such as 8G; default: all there is",
    )
    group.add_argument(
        "--trust",
        action="store_true",
        help="run the model's TensorRT engines though somebody else built them: they are native "
        "code; remembered for these very files",
    )
    group.add_argument(
        "--vae-tiling",
        choices=("auto", "on", "off"),
        default="auto",
        help="decode in tiles, which takes less memory; auto: where the whole would not fit",
    )
    return parser


def _print_name(path: Path) -> None:
    """A file's name at once: as a terminal may show it, else byte by byte, for scripts to use."""
    if sys.stdout.isatty():
        print(escaped(str(path)), flush=True)
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
        sys.stdout.buffer.flush()


def _add_format(parser: Parser) -> None:
    parser.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="json prints one object, an error included, on standard output",
    )


def _prompt(found: argparse.Namespace) -> str:
    """The prompt from where it was given: PROMPT, --prompt, or standard input for `-`."""
    given = [text for text in (found.PROMPT, getattr(found, "prompt", None)) if text is not None]
    if len(given) != 1:
        problem = "given twice, as PROMPT and as --prompt; leave" if given else "missing; give"
        raise BadInput(f'the prompt is {problem} one, such as "a red circle"')
    if found.PROMPT != "-":
        return str(given[0])
    if sys.stdin is None:
        raise BadInput("standard input is closed, the prompt `-` is read from there; give it one")
    content = sys.stdin.buffer.read(LONGEST_PROMPT + 1)
    if len(content) > LONGEST_PROMPT:
        raise BadInput(f"the prompt on standard input is longer than {LONGEST_PROMPT} bytes")
    try:
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"the prompt on standard input is not UTF-8 at byte {error.start}; convert it (iconv)"
        ) from None
