"""How much memory a request needs, how much there is, and how the request is cut to fit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.manifest import Manifest, UnetRecord, VaeRecord

Tiling = Literal["auto", "on", "off"]

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
SPARE = 0.9  # of what is available is planned with; the rest is for everything not reckoned here


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a request is carried out in the memory there is."""

    latent_shape: tuple[int, int, int]  # channels, height, width
    group: int  # images denoised together
    tile: int | None  # side of a VAE tile in latent pixels; None decodes in one pass


def fit(
    manifest: Manifest, *, width: int, height: int, rows: int, images: int, tiling: Tiling
) -> Fit:
    """Choose the group and the tile; sizes in pixels, `rows` of the UNet for each image.

    Raises BadInput where not even one image fits, or the size is none the model takes.
    """
    if tiling not in get_args(Tiling):
        raise BadInput(f"vae-tiling {shown(tiling)} is unknown; one of auto, on, off")
    vae = manifest.vae
    shape = (vae.channels, height // vae.factor, width // vae.factor)
    room = available()
    budget = None if room is None else int(room * SPARE)
    one = unet_bytes(manifest.unet, rows, *shape[1:])
    group = images if budget is None else min(images, budget // max(one, 1))
    if group == 0:
        raise BadInput(
            f"a picture of {width}x{height} needs about {_gigabytes(one)} to denoise and "
            f"{_gigabytes(room or 0)} is free; try a smaller size"
            + (" or --guidance-scale 1, which needs half" if rows == 2 else "")
        )
    return Fit(latent_shape=shape, group=group, tile=_tile(manifest, shape, tiling, budget))


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


def _tile(
    manifest: Manifest, shape: tuple[int, int, int], tiling: Tiling, budget: int | None
) -> int | None:
    _, height, width = shape
    if tiling == "off" or (tiling == "auto" and budget is None):
        return None
    vae = manifest.vae
    if tiling == "auto" and decoder_bytes(vae, height, width) <= (budget or 0):
        return None
    tile = max(manifest.defaults.width, manifest.defaults.height) // vae.factor
    while budget is not None and tile > 16 and decoder_bytes(vae, tile, tile) > budget:
        tile //= 2
    return tile


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
    """What the group's limit leaves; file pages that can be dropped count as free."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        dropped = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used + dropped)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
