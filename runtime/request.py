"""What a user asks for: one prompt, its settings, and what is wrong with them if anything is."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from diffusion_rt.engines.errors import BadInput

Size = tuple[int, int]
Spacing = Literal["leading", "linspace", "trailing"]

SPACINGS = ("leading", "linspace", "trailing")
SIGMAS = ("karras", "exponential", "beta", "sgm-uniform", "ays")
RNGS = ("cpu", "nv")
EMPHASES = ("original", "no-norm", "none")
MAX_SIDE = 16384  # pixels
MAX_STEPS = 1000
MAX_IMAGES = 1000
MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; names, units and meanings are those of diffusers' SDXL pipeline.

    None leaves a choice to the model's manifest, then to diffusers' default. Sizes are in pixels;
    `original_size`, `target_size` and the crops are (height, width) and (top, left), as in
    diffusers. Image i of a request is drawn from the noise of `seed + i`, or of the i-th seed where
    a tuple is given, whatever else is in the batch. Raises BadInput in one line.
    """

    prompt: str
    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    sampler: str | None = None
    spacing: Spacing | None = None
    sigmas: str | tuple[float, ...] | None = (
        None  # a name of SIGMAS, or the noise levels themselves
    )
    timesteps: tuple[float, ...] | None = None
    eta: float = 0.0
    seed: int | tuple[int, ...] | None = None
    num_images_per_prompt: int = 1
    rng: Literal["cpu", "nv"] = "cpu"
    clip_skip: int | None = None
    emphasis: Literal["original", "no-norm", "none"] = "original"
    original_size: Size | None = None
    crops_coords_top_left: Size = (0, 0)
    target_size: Size | None = None
    negative_original_size: Size | None = None
    negative_crops_coords_top_left: Size = (0, 0)
    negative_target_size: Size | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            object.__setattr__(self, name, _python(getattr(self, name)))
        for name in ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"):
            _text(name, getattr(self, name), optional=name != "prompt")
        for name in ("width", "height"):
            _side(name, getattr(self, name))
        _whole("steps", self.num_inference_steps, 1, MAX_STEPS)
        _number("guidance_scale", self.guidance_scale, 0.0, 100.0)
        _number("guidance_rescale", self.guidance_rescale, 0.0, 1.0)
        _number("eta", self.eta, 0.0, 1.0)
        _whole("images", self.num_images_per_prompt, 1, MAX_IMAGES)
        _whole("clip_skip", self.clip_skip, 0, 100)
        _choice("spacing", self.spacing, SPACINGS, optional=True)
        _choice("rng", self.rng, RNGS)
        _choice("emphasis", self.emphasis, EMPHASES)
        if self.sampler is not None and not isinstance(self.sampler, str):
            raise BadInput(f"sampler={self.sampler!r} is no name; try sampler='euler'")
        self._check_schedule()
        self._check_seed()
        for name in ("original_size", "target_size", "negative_original_size"):
            _pair(name, getattr(self, name), least=1)
        _pair("negative_target_size", self.negative_target_size, least=1)
        _pair("crops_coords_top_left", self.crops_coords_top_left, least=0)
        _pair("negative_crops_coords_top_left", self.negative_crops_coords_top_left, least=0)

    def _check_schedule(self) -> None:
        if isinstance(self.sigmas, str):
            _choice("sigmas", self.sigmas, SIGMAS)
        lists = [n for n in ("sigmas", "timesteps") if isinstance(getattr(self, n), tuple)]
        for name in lists:
            values = getattr(self, name)
            if not 1 <= len(values) <= MAX_STEPS + 1:
                raise BadInput(f"{name} lists {len(values)} values; give 1 to {MAX_STEPS + 1}")
            for value in values:
                _number(name, value, 0.0, 1e6)
        for name in ("sigmas", "timesteps"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), str | tuple):
                raise BadInput(f"{name}={getattr(self, name)!r} is no tuple of numbers")
        if self.timesteps is not None and self.sigmas is not None:
            raise BadInput("timesteps and sigmas are both given; leave one of them out")
        if self.timesteps is not None and isinstance(self.timesteps, str):
            raise BadInput(f"timesteps={self.timesteps!r} is no tuple of numbers")

    def _check_seed(self) -> None:
        if isinstance(self.seed, tuple):
            if len(self.seed) != self.num_images_per_prompt:
                raise BadInput(
                    f"seed lists {len(self.seed)} values for {self.num_images_per_prompt} "
                    "image(s); give one for each image, or a single one"
                )
            for seed in self.seed:
                _whole("seed", seed, 0, MAX_SEED)
        else:
            _whole("seed", self.seed, 0, MAX_SEED)

    def seeds(self, first: int) -> list[int]:
        """The seed of each image; `first` stands in where the request names none."""
        if isinstance(self.seed, tuple):
            return list(self.seed)
        start = first if self.seed is None else self.seed
        return [(start + i) % (MAX_SEED + 1) for i in range(self.num_images_per_prompt)]


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The known name that is like `name`; None where none is."""
    return next(iter(get_close_matches(name, names, n=1, cutoff=0.5)), None)


def way_out(name: str, names: Sequence[str]) -> str:
    """What an error says after an unknown name: the one that is like it, or all there are."""
    close = nearest(name, names)
    return f"did you mean {close!r}?" if close else f"one of {', '.join(names)}"


def _python(value: Any) -> Any:
    """A number of NumPy's as Python's own, in a tuple too; all else as it is."""
    if isinstance(value, tuple):
        return tuple(map(_python, value))
    return value.item() if getattr(value, "shape", None) == () else value


def _text(name: str, value: Any, *, optional: bool) -> None:
    if value is None and optional:
        return
    if not isinstance(value, str):
        raise BadInput(f"{name} is {type(value).__name__}; give text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{name} holds a lone surrogate at character {error.start}, which no text can; "
            "give valid Unicode"
        ) from None


def _side(name: str, value: Any) -> None:
    _whole(name, value, 8, MAX_SIDE)
    if value is not None and value % 8:
        below, above = value // 8 * 8, min(value // 8 * 8 + 8, MAX_SIDE)
        raise BadInput(f"{name}={value} is no multiple of 8; try {max(below, 8)} or {above}")


def _whole(name: str, value: Any, least: int, most: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadInput(f"{name}={value!r} is no whole number; give {least} to {most}")
    if not least <= value <= most:
        raise BadInput(f"{name}={_told(value)} is out of range; give {least} to {most}")


def _number(name: str, value: Any, least: float, most: float) -> None:
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadInput(f"{name}={value!r} is no number; give {least:g} to {most:g}")
    if not least <= value <= most:  # nor is NaN
        raise BadInput(f"{name}={_told(value)} is out of range; give {least:g} to {most:g}")


def _told(value: float) -> str:
    """A number in a message; Python refuses to write the longest."""
    return "a huge number" if isinstance(value, int) and abs(value) >= 1 << 128 else str(value)


def _choice(name: str, value: Any, choices: Sequence[str], *, optional: bool = False) -> None:
    if value in choices or (optional and value is None):
        return
    close = nearest(value, choices) if isinstance(value, str) else None
    hint = f"did you mean {close!r}? " if close else ""
    raise BadInput(f"{name}={value!r} is not known; {hint}one of {', '.join(choices)}")


def _pair(name: str, value: Any, *, least: int) -> None:
    if value is None:
        return
    if not isinstance(value, tuple) or len(value) != 2:
        raise BadInput(f"{name}={value!r} is no pair of whole numbers, such as (1024, 1024)")
    for part in value:
        _whole(name, part, least, 65536)
