"""What memory a model and a request need, what there is, and how a request is cut to fit."""

from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, get_args

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.manifest import Manifest, UnetRecord, VaeRecord
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.safetensors_file import StoredTensor, read_table
from diffusion_rt.runtime.decode import SMALLEST_TILE

if TYPE_CHECKING:
    from diffusion_rt.engines.native.forecast import Forecast, Forecaster

Tiling = Literal["auto", "on", "off"]

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
SPARE = 0.9  # of what is available is planned with; the rest is for everything not reckoned here
LOADING = 0.4  # of a graph's weights are held a second time while it loads
MAPPED = 1 << 30  # bytes of a weights file, from which on float32 matrices stay in the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a request is carried out in the memory there is."""

    latent_shape: tuple[int, int, int]  # channels, height, width
    group: int  # images denoised together
    tile: int | None  # side of a VAE tile in latent pixels; None decodes in one pass


def budget(folder: ModelFolder) -> int | None:
    """Bytes that are left for activations once every graph is loaded; None where nobody knows.

    Raises BadInput where there is no room for the weights.
    """
    free = available()
    if free is None:
        return None
    weights = weight_bytes(folder)
    held, loading = sum(weights.values()), int(LOADING * max(weights.values(), default=0))
    left = int(free * SPARE) - held
    if left < loading:
        raise BadInput(
            f"{folder.manifest.name} needs about {_gigabytes(held + loading)} of memory to load "
            f"its weights as float32 and {_gigabytes(free)} is free; "
            "close other programs, or use a machine with more"
        )
    return left


def weight_bytes(folder: ModelFolder) -> dict[str, int]:
    """Bytes of float32 copies that ONNX Runtime makes of the weights, by part of the model.

    All but the matrices of large float32 files: those are read where they lie in the file, whose
    pages the system can drop. Its VAE's encoder is counted too, though it is not loaded.
    """
    found: Counter[str] = Counter()
    for name, record in folder.manifest.files.items():
        if name.endswith(".safetensors"):
            tensors = read_table(folder.path / name, follow_links=False).tensors.values()
            copied = [t for t in tensors if record.size < MAPPED or _is_copied(t)]
            found[PurePosixPath(name).parts[0]] += sum(4 * prod(t.shape) for t in copied)
    return dict(found)


def fit(
    manifest: Manifest,
    *,
    width: int,
    height: int,
    rows: int,
    images: int,
    tiling: Tiling,
    room: int | None,
) -> Fit:
    """Choose the group and the tile; sizes in pixels, `rows` of the UNet for each image.

    `room` is how many bytes the activations may take, None for as many as they like. Those of the
    UNet and of the decoder are reckoned together: ONNX Runtime gives none back in between. Raises
    BadInput where not even one image fits, or the size is none the model takes.
    """
    if tiling not in get_args(Tiling):
        raise BadInput(f"vae-tiling {shown(tiling)} is unknown; one of auto, on, off")
    vae = manifest.vae
    for name, side in (("width", width), ("height", height)):
        if side % vae.factor:
            nearest = max(side // vae.factor, 1) * vae.factor
            raise BadInput(
                f"{name}={side} is no multiple of {vae.factor}, as this model wants; try {nearest}"
            )
    shape = (vae.channels, height // vae.factor, width // vae.factor)
    one = unet_bytes(manifest.unet, rows, *shape[1:])
    tile = _tile(manifest, shape, tiling, None if room is None else room - one)
    if room is None:
        return Fit(latent_shape=shape, group=images, tile=tile)
    decoder = decoder_bytes(vae, *(min(side, tile or side) for side in shape[1:]))
    group = min(images, (room - decoder) // max(one, 1))
    if group <= 0:
        raise BadInput(
            f"a picture of {width}x{height} needs about {_gigabytes(one)} to denoise and "
            f"{_gigabytes(decoder)} to decode, and {_gigabytes(max(room, 0))} is free; "
            "try a smaller size"
            + (" or --guidance-scale 1, which needs half" if rows == 2 else "")
            + (" or --vae-tiling auto" if tiling == "off" else "")
        )
    return Fit(latent_shape=shape, group=group, tile=tile)


def fit_device(
    forecaster: "Forecaster", whole: Fit, *, rows: int, tokens: int, tiling: Tiling, memory: int
) -> tuple[Fit, "Forecast"]:
    """Cut a request further until it fits so many bytes of device memory; and what it will take.

    Raises OutOfMemory where it cannot be cut so far.
    """
    from diffusion_rt.engines.native.forecast import Work

    _, height, width = whole.latent_shape
    work = Work(
        height=height,
        width=width,
        rows=rows,
        images=whole.group,
        tokens=tokens,
        tile=whole.tile,
    )
    work, forecast = forecaster.fitted(work, memory, tiles=tiling != "off")
    return replace(whole, group=work.images, tile=work.tile), forecast


def available() -> int | None:
    """Bytes that may still be taken, by the kernel's estimate and the control group's limit."""
    known = [n for n in (_meminfo(), _control_group()) if n is not None]
    return min(known) if known else None


def unet_bytes(unet: UnetRecord, batch: int, height: int, width: int) -> int:
    """Activations of one float32 evaluation of the UNet on latents [batch, c, height, width].

    At the level that needs most: attention's scores with their softmax, which ONNX Runtime's CPU
    kernel writes in full, and the feature maps. Within 10 % of what `shapes-xl` took at 512 and 768
    pixels a side.
    """
    most = 0
    for level, (channels, heads) in enumerate(zip(unet.channels, unet.heads, strict=True)):
        pixels = -(-height // 2**level) * -(-width // 2**level)
        scores = 2 * heads * pixels * pixels
        most = max(most, batch * 4 * (scores + 24 * channels * pixels))
    return most


def decoder_bytes(vae: VaeRecord, height: int, width: int) -> int:
    """Activations of decoding one latent [c, height, width] in float32.

    The scores of the single attention head over all latent pixels, the maps around it, and those at
    full size: ONNX Runtime's arena gives none back in between. Within 6 % of what `shapes-xl` took
    at 512 and 1,024 pixels a side.
    """
    pixels = height * width
    middle = pixels * pixels + 8 * vae.decoder_channels[-1] * pixels
    maps = 4 * vae.decoder_channels[0] * pixels * vae.factor**2
    return 4 * (middle + maps)


def _is_copied(tensor: StoredTensor) -> bool:
    """Whether a float32 copy is made of it: types are cast, kernels of convolutions reordered."""
    return tensor.dtype != "F32" or len(tensor.shape) == 4


def _tile(
    manifest: Manifest, shape: tuple[int, int, int], tiling: Tiling, room: int | None
) -> int | None:
    """The side of a tile that fits in `room`, or the smallest there is."""
    if tiling == "off" or (tiling == "auto" and room is None):
        return None
    vae = manifest.vae
    if tiling == "auto" and room is not None and decoder_bytes(vae, *shape[1:]) <= room:
        return None
    tile = max(manifest.defaults.width, manifest.defaults.height) // vae.factor
    while room is not None and tile > SMALLEST_TILE and decoder_bytes(vae, tile, tile) > room:
        tile //= 2
    return max(tile, SMALLEST_TILE)


def _meminfo() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _control_group() -> int | None:
    """What the limits of this process's control group and of those around it leave."""
    try:
        (own,) = (
            line.removeprefix("0::/")
            for line in OWN_GROUP.read_text().splitlines()
            if line.startswith("0::/")  # version 2, which has one tree of groups
        )
    except (OSError, ValueError):
        own = ""
    path = PurePosixPath(own)
    groups = [_left(CGROUP / group) for group in {path, *path.parents}]
    return min((left for left in groups if left is not None), default=None)


def _left(group: Path) -> int | None:
    """Bytes to the limit of one group; file pages that can be dropped count as free."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        dropped = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
        return None if limit == "max" else max(0, int(limit) - used + dropped)
    except (OSError, ValueError):
        return None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
