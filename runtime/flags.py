"""Every field of a Request as a flag of the command line, and back."""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusion_rt.command import shortened
from diffusion_rt.runtime.request import EMPHASES, RNGS, SIGMAS, SPACINGS, Request

LEAST_MEMORY = 1 << 20  # bytes: a number without a unit is a slip of the pen

# Those of runtime/samplers, which needs NumPy; a test holds the two to each other.
SAMPLER_NAMES = (
    "euler",
    "euler-a",
    "heun",
    "dpm2",
    "dpm2-a",
    "lms",
    "dpmpp-2m",
    "dpmpp-3m",
    "dpmpp-2m-sde",
    "dpmpp-3m-sde",
    "dpmpp-2s",
    "dpmpp-2s-a",
    "deis",
    "unipc",
    "pndm",
    "ddim",
    "ddpm",
    "lcm",
    "tcd",
)

_BYTES = re.compile(r"([0-9]{1,12}|[0-9]{1,6}\.[0-9]{1,6})\s?([KMGT]?)(?:i?B)?", re.ASCII | re.I)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class Flag:
    """How one field is written: the reader of its text, the name of its value, its help."""

    read: Callable[[str], Any]
    value: str
    help: str
    short: str | None = None


def whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise _wrong(text, "no whole number") from None


def number(text: str) -> float:
    """A number; NaN and infinity are left for Request to refuse."""
    try:
        return float(text)
    except ValueError:
        raise _wrong(text, "no number") from None


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    return tuple(number(part) for part in text.split(","))


def pair(text: str) -> tuple[int, int]:
    """Two whole numbers with an `x` or a comma between them."""
    parts = text.replace("x", ",").split(",")
    if len(parts) != 2:
        raise _wrong(text, "no two whole numbers; write them as 1024x1024")
    return whole(parts[0]), whole(parts[1])


def byte_size(text: str) -> int:
    """Bytes as people write them: `8G`, `8GB` (both 2^30 bytes each), `7.5G`, `900M`."""
    found = _BYTES.fullmatch(text.strip())
    if found is None:
        raise _wrong(text, "no amount of memory; write it as 8G, 7.5G or 900M")
    nbytes = int(float(found[1]) * _UNITS[found[2].upper()])
    if nbytes < LEAST_MEMORY:
        raise _wrong(text, f"less than {LEAST_MEMORY >> 20}M of memory; write it as 8G or 900M")
    return nbytes


def seeds(text: str) -> int | tuple[int, ...]:
    """One seed, or one for each image with commas between them."""
    return tuple(whole(part) for part in text.split(",")) if "," in text else whole(text)


def noise_levels(text: str) -> str | tuple[float, ...]:
    """A name of SIGMAS, or the noise levels themselves with commas between them."""
    return numbers(text) if text[:1].isdigit() or text[:1] in ("-", ".", "") else text


def _wrong(text: str, what: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{shortened(text)!r} is {what}")


FLAGS: dict[str, dict[str, Flag]] = {
    "prompt": {
        "prompt": Flag(str, "TEXT", "the prompt, where it is not given as PROMPT"),
        "prompt_2": Flag(str, "TEXT", "what the second text encoder reads; default: the prompt"),
        "negative_prompt": Flag(str, "TEXT", "what the picture should not show"),
        "negative_prompt_2": Flag(str, "TEXT", "the same for the second text encoder"),
        "clip_skip": Flag(whole, "N", "leave out the last N layers of the text encoders more"),
        "emphasis": Flag(str, "NAME", f"how (weights:1.2) act: {', '.join(EMPHASES)}"),
    },
    "picture": {
        "width": Flag(whole, "PIXELS", "a multiple of 8; default: the model's"),
        "height": Flag(whole, "PIXELS", "a multiple of 8; default: the model's"),
        "num_images_per_prompt": Flag(
            whole, "N", "how many pictures to draw; default: 1", "images"
        ),
        "seed": Flag(
            seeds, "SEED", "image i is drawn from SEED + i; or SEED,SEED,…; default: a new one"
        ),
        "rng": Flag(str, "NAME", f"whose noise a seed means: {', '.join(RNGS)}; default: cpu"),
    },
    "sampling": {
        "num_inference_steps": Flag(
            whole, "N", "steps of denoising; default: the model's", "steps"
        ),
        "guidance_scale": Flag(number, "SCALE", "how closely to follow the prompt; 1 is off"),
        "guidance_rescale": Flag(number, "PHI", "0 to 1: against overexposure; default: 0"),
        "sampler": Flag(str, "NAME", f"{', '.join(SAMPLER_NAMES)}; default: the model's"),
        "spacing": Flag(str, "NAME", f"of the timesteps: {', '.join(SPACINGS)}"),
        "sigmas": Flag(
            noise_levels, "NAME|LIST", f"{', '.join(SIGMAS)}; or noise levels such as 14.6,5.1,0.9"
        ),
        "timesteps": Flag(numbers, "LIST", "the timesteps themselves, such as 999,749,499,249"),
        "eta": Flag(number, "ETA", "0 to 1: the share of fresh noise in ddim and tcd; default: 0"),
    },
    "micro-conditioning (height before width, top before left, as in diffusers)": {
        "original_size": Flag(pair, "HEIGHTxWIDTH", "size of the picture it pretends to come from"),
        "crops_coords_top_left": Flag(pair, "TOP,LEFT", "where that was cropped; default: 0,0"),
        "target_size": Flag(
            pair, "HEIGHTxWIDTH", "size it was trained for; default: the picture's"
        ),
        "negative_original_size": Flag(pair, "HEIGHTxWIDTH", "the same for the negative prompt"),
        "negative_crops_coords_top_left": Flag(pair, "TOP,LEFT", "the same"),
        "negative_target_size": Flag(pair, "HEIGHTxWIDTH", "the same"),
    },
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give `parser` a flag for every field of Request, in groups."""
    for title, group in FLAGS.items():
        arguments = parser.add_argument_group(title)
        for field, flag in group.items():
            names = [f"--{name.replace('_', '-')}" for name in (flag.short, field) if name]
            arguments.add_argument(
                *names,
                dest=field,
                type=flag.read,
                metavar=flag.value,
                help=flag.help,
                default=argparse.SUPPRESS,
            )


def request_of(found: argparse.Namespace) -> Request:
    """The Request that the flags given ask for. Raises BadInput."""
    fields = [field for group in FLAGS.values() for field in group]
    return Request(**{name: getattr(found, name) for name in fields if hasattr(found, name)})
