"""What device memory a request takes, stage by stage, reckoned before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from diffusion_rt.engines.device.protocol import AHEAD
from diffusion_rt.engines.errors import OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.native.lower import plan_of
from diffusion_rt.engines.native.plan import Plan
from diffusion_rt.engines.native.precision import arithmetic
from diffusion_rt.engines.spec import Precision

SPARE = 1.05  # of activations and arrays: what allocations round up
MOST_SCRATCH = 32 << 20  # bytes: seen is a third of that, for SDXL
TABLE_ROWS = 64  # evaluations that the loop's tables have room for, at least
STACK = 5  # latents that the widest sampler carries
SMALLEST_TILE = 16  # latent pixels a side


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The sizes of a request."""

    height: int  # of latents
    width: int
    rows: int  # of the UNet for each image: 2 with guidance, else 1
    images: int  # denoised together
    tokens: int  # of context
    tile: int | None = None  # side of a VAE tile in latent pixels


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage needs, in bytes."""

    weights: int
    activations: int
    arrays: int  # inputs, outputs and tables

    @property
    def total(self) -> int:
        """All of it, with what splits of products and the like want."""
        scratch = min(self.weights // 100, MOST_SCRATCH)
        return int(self.weights + scratch + SPARE * (self.activations + self.arrays))


@dataclass(frozen=True, slots=True)
class Forecast:
    """The three stages of a request."""

    text: Stage
    denoise: Stage
    decode: Stage

    @property
    def stages(self) -> Mapping[str, Stage]:
        """By name, in order."""
        return {"text": self.text, "denoise": self.denoise, "decode": self.decode}

    @property
    def together(self) -> int:
        """The peak where everything stays on the device: activations share memory."""
        stages = self.stages.values()
        whole = Stage(
            weights=sum(stage.weights for stage in stages),
            activations=max(stage.activations for stage in stages),
            arrays=sum(stage.arrays for stage in stages),
        )
        return whole.total

    @property
    def in_turn(self) -> int:
        """The peak where each stage frees what it took."""
        return max(stage.total for stage in self.stages.values())

    def told(self, budget: int) -> str:
        """The peak within a budget, in words."""
        if self.together <= budget:
            return f"{gigabytes(self.together)} of {gigabytes(budget)}, every part stays loaded"
        stages = ", ".join(f"{name} {gigabytes(s.total)}" for name, s in self.stages.items())
        return f"{gigabytes(self.in_turn)} of {gigabytes(budget)}, parts in turn: {stages}"


class Forecaster:
    """Forecasts for one model; plans are made once for each size."""

    def __init__(self, folder: ModelFolder, precision: Precision = "float16") -> None:
        """`precision` is what the engine runs in where a graph has no other."""
        self._folder = folder
        self._precision: Precision = precision
        self._plans: dict[tuple[str, tuple[tuple[str, int], ...]], Plan] = {}

    def __call__(self, work: Work) -> Forecast:
        """The memory that `work` needs, from the plans of its sizes; no weight is read."""
        encoders = [
            self._plan(
                encoder.graph,
                batch=work.rows * -(-work.tokens // encoder.max_length),
                tokens=encoder.max_length,
            )
            for encoder in self._folder.manifest.text_encoders
        ]
        batch = work.rows * work.images
        latents = {"height": work.height, "width": work.width}
        unet = [
            self._plan("unet_prompt", batch=batch, tokens=work.tokens),
            self._plan("unet_timestep", n=TABLE_ROWS * batch),
            self._plan("unet_step", batch=batch, tokens=work.tokens, **latents),
        ]
        channels = self._folder.manifest.unet.in_channels
        state = 4 * (STACK + AHEAD) * work.images * channels * work.height * work.width
        tile = {side: min(size, work.tile or size) for side, size in latents.items()}
        pixels = 3 * tile["height"] * tile["width"] * self._folder.manifest.vae.factor**2
        return Forecast(
            text=_stage(encoders),
            denoise=_stage(unet, state),
            decode=_stage([self._plan("vae_decoder", batch=1, **tile)], pixels),
        )

    def fitted(self, work: Work, budget: int, *, tiles: bool = True) -> tuple[Work, Forecast]:
        """`work` cut until its stages, taken in turn, fit the budget, and its forecast.

        First the VAE decodes in tiles, if it may, then fewer images are denoised together. Raises
        OutOfMemory where that is not enough: what is needed, what there is, and what would fit.
        """
        found, side = self(work), max(work.height, work.width)
        while tiles and found.decode.total > budget and (work.tile or side) > SMALLEST_TILE:
            tile = max(-(-(work.tile or side) // 2), SMALLEST_TILE)
            found = self(work := replace(work, tile=tile))
        while found.denoise.total > budget and work.images > 1:
            fitting = work.images * budget // found.denoise.total
            found = self(work := replace(work, images=min(max(fitting, 1), work.images - 1)))
        if found.in_turn > budget:
            raise OutOfMemory(self._too_little(work, found, budget))
        return work, found

    def _too_little(self, work: Work, found: Forecast, budget: int) -> str:
        stage, needed = max(found.stages.items(), key=lambda item: item[1].total)
        said = (
            f"{stage} of {_pixels(work)} needs {gigabytes(needed.total)} of device memory, "
            f"{gigabytes(needed.weights)} of it for weights; the budget is {gigabytes(budget)}"
        )
        for eighths in range(7, 1, -1):
            height, width = (max(size * eighths // 8, 1) for size in (work.height, work.width))
            smaller = replace(work, height=height, width=width)
            if self(smaller).in_turn <= budget:
                return f"{said}; {_pixels(smaller)} would fit"
        return f"{said}; no size would fit: give it more, or use --engine ort"

    def _plan(self, graph: str, **sizes: int) -> Plan:
        key = (graph, tuple(sorted(sizes.items())))
        if key not in self._plans:
            dtype = arithmetic(self._folder, graph, None, self._precision)
            self._plans[key] = plan_of(self._folder, graph, sizes, dtype)
        return self._plans[key]


def gigabytes(count: int) -> str:
    """Such as `6.1 GB`; megabytes below one."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _pixels(work: Work) -> str:
    return f"{8 * work.width}x{8 * work.height}"


def _stage(plans: list[Plan], arrays: int = 0) -> Stage:
    bound = sum(b.size for plan in plans for b in plan.buffers.values() if b.place != "arena")
    return Stage(
        weights=sum(plan.weights_size for plan in plans),
        activations=max(plan.arena_size for plan in plans),
        arrays=bound + arrays,
    )
