"""What device memory a request takes, stage by stage, reckoned before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

from diffusion_rt.engines.errors import OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.native.lower import plan_of
from diffusion_rt.engines.native.plan import Arithmetic, Plan
from diffusion_rt.engines.native.precision import arithmetic
from diffusion_rt.engines.spec import Precision

SPARE = 1.05  # for splits of products, tables of a loop, counters, what allocations round up
TABLE_ROWS = 64  # evaluations that the loop's tables have room for, at least
STACK = 5  # latents that the widest sampler carries

UNET = ("unet_prompt", "unet_timestep", "unet_step")


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
        """All of it."""
        return int(SPARE * (self.weights + self.activations + self.arrays))


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
        kept = sum(stage.weights + stage.arrays for stage in stages)
        return int(SPARE * (kept + max(stage.activations for stage in stages)))

    @property
    def in_turn(self) -> int:
        """The peak where each stage frees what it took."""
        return max(stage.total for stage in self.stages.values())

    def __str__(self) -> str:
        """Such as `text 0.9 GB, denoise 6.1 GB, decode 4.2 GB`."""
        return ", ".join(f"{name} {gigabytes(s.total)}" for name, s in self.stages.items())


def forecast(folder: ModelFolder, work: Work, precision: Precision = "float16") -> Forecast:
    """The memory that `work` needs, from the plans of its sizes; no weight is read."""
    planner = _Planner(folder, precision)
    encoders = [
        planner.plan(
            encoder.graph,
            {"batch": work.rows * -(-work.tokens // encoder.max_length)},
            {"tokens": encoder.max_length},
        )
        for encoder in folder.manifest.text_encoders
    ]
    batch = work.rows * work.images
    sizes = {"batch": batch, "tokens": work.tokens, "n": batch}
    latents = {"height": work.height, "width": work.width}
    unet = [planner.plan(graph, sizes, latents) for graph in UNET]
    channels = folder.manifest.unet.in_channels
    state = 4 * STACK * work.images * channels * work.height * work.width
    tables = TABLE_ROWS * sum(unet[1].buffers[name].size for name in unet[1].outputs)
    tile = {side: min(size, work.tile or size) for side, size in latents.items()}
    decoder = planner.plan("vae_decoder", {"batch": 1}, tile)
    return Forecast(_stage(encoders), _stage(unet, state + tables), _stage([decoder]))


def check_budget(found: Forecast, budget: int, free: int, work: Work) -> None:
    """Raise OutOfMemory, with what is needed, what there is and what to do, where it is too much.

    The stages are taken in turn; `budget` and `free` are in bytes.
    """
    have = min(budget, free)
    if found.in_turn <= have:
        return
    stage, needed = max(found.stages.items(), key=lambda item: item[1].total)
    ways = ["a smaller --width and --height"]
    if work.images > 1:
        ways.insert(0, "fewer --images")
    if work.rows > 1:
        ways.append("--guidance-scale 1")
    weights = f", {gigabytes(needed.weights)} of them weights" if needed.weights else ""
    limit = (
        f"--memory allows {gigabytes(budget)}" if budget <= free else f"{gigabytes(free)} is free"
    )
    raise OutOfMemory(
        f"{stage} of {8 * work.width}x{8 * work.height} needs {gigabytes(needed.total)} of device "
        f"memory{weights}, and {limit}; try {', '.join(ways)}, or --engine ort"
    )


def gigabytes(count: int) -> str:
    """Such as `6.1 GB`; megabytes below a tenth."""
    return f"{count / 1e9:.1f} GB" if count >= 100_000_000 else f"{count / 1e6:.1f} MB"


class _Planner:
    def __init__(self, folder: ModelFolder, precision: Precision) -> None:
        self._folder, self._precision = folder, precision

    def plan(self, graph: str, *sizes: Mapping[str, int]) -> Plan:
        dtype: Arithmetic = arithmetic(self._folder, graph, None, self._precision)
        known = {name: size for group in sizes for name, size in group.items()}
        return plan_of(self._folder, graph, known, dtype)


def _stage(plans: list[Plan], arrays: int = 0) -> Stage:
    bound = sum(b.size for plan in plans for b in plan.buffers.values() if b.place != "arena")
    return Stage(
        weights=sum(plan.weights_size for plan in plans),
        activations=max(plan.arena_size for plan in plans),
        arrays=bound + arrays,
    )
