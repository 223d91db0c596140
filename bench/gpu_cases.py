"""All cases: the kernels at the shapes of SDXL, and at shapes that nothing divides."""

from diffusion_rt.bench import gpu_shapes
from diffusion_rt.bench.gpu_case import Case
from diffusion_rt.bench.gpu_norms import GroupNorm, LayerNorm
from diffusion_rt.bench.gpu_pixels import Pixels
from diffusion_rt.bench.gpu_steps import GuidedStep, Prepare, SelectRows


def cases(*, tiny: bool) -> list[Case]:
    """All of them, the most wanted first; `tiny` are those a simulator can do in no time."""
    if tiny:
        return [
            GroupNorm("float16", True, 2, 9, 40, 4),
            LayerNorm("float16", 3, 40),
            GuidedStep("float16", 2, 2, 300),
            Prepare("float16", 2, 2, 300),
            SelectRows((16, 272)),
            Pixels("float16", 2, 301),
        ]
    resnets = (320,) * 5 + (640,) * 5 + (1280,) * 7
    found: list[Case] = [
        GroupNorm("float16", True, 2, 16384, 320),
        GroupNorm("float16", True, 2, 1024, 1280),
        LayerNorm("float16", 2048, 1280),
        LayerNorm("float16", 8192, 640),
        GuidedStep("float16", 2, 1, 65536),
        Prepare("float16", 2, 1, 65536),
        SelectRows(tuple(2 * 2 * channels for channels in resnets)),
        Pixels("float32", 1, 1024 * 1024),
        GroupNorm("float16", False, 2, 4096, 640),
        GroupNorm("float16", False, 2, 1024, 1280),
        GroupNorm("float16", True, 2, 4096, 640),
        GroupNorm("float16", True, 2, 4096, 1920),
        GroupNorm("float16", True, 2, 1024, 2560),
        GroupNorm("float16", True, 2, 16384, 960),
        GroupNorm("float16", True, 1, 65536, 512),  # of the VAE's decoder
        GuidedStep("float16", 2, 4, 65536),
        GuidedStep("float16", 1, 1, 65536, order=1),
        # Shapes that nothing divides.
        GroupNorm("float16", True, 3, 1015, 40, 4),
        GroupNorm("float16", False, 1, 1, 8, 1),
        GroupNorm("float16", True, 1, 4095, 1888, 8),
        LayerNorm("float16", 1001, 1288),
        LayerNorm("float16", 154, 768),
        LayerNorm("float16", 1, 8),
        LayerNorm("float16", 77, 2048),
        GuidedStep("float16", 2, 3, 1001, order=5),
        Prepare("float16", 1, 3, 1001),
        SelectRows((16, 2560, 4112, 70_000)),
        Pixels("float16", 3, 1001),
        Pixels("float32", 3, 1001),
        # The same in float32.
        GroupNorm("float32", True, 2, 1024, 1280),
        GroupNorm("float32", False, 2, 4096, 640),
        GroupNorm("float32", True, 3, 1015, 40, 4),
        LayerNorm("float32", 2048, 1280),
        LayerNorm("float32", 1001, 1288),
        GuidedStep("float32", 2, 1, 65536),
        GuidedStep("float32", 1, 3, 1001, order=3),
        Prepare("float32", 2, 1, 65536),
    ]
    return found


def of_step(
    width: int,
    height: int,
    images: int = 1,
    rows: int = 2,
    network: gpu_shapes.Network = gpu_shapes.SDXL,
) -> list[Case]:
    """The kernels of one step of a UNet for pictures of that size, at each of its shapes.

    `rows` is 2 with guidance, else 1.
    """
    shapes = gpu_shapes.step(width, height, rows * images, network)
    found: list[Case] = []
    for norm, _ in gpu_shapes.of_kind(shapes, gpu_shapes.GroupNorm):
        found.append(GroupNorm("float16", norm.silu, norm.images, norm.pixels, norm.channels))
    for layer, _ in gpu_shapes.of_kind(shapes, gpu_shapes.LayerNorm):
        found.append(LayerNorm("float16", layer.rows, layer.columns))
    elements = 4 * (width // 8) * (height // 8)
    found.append(GuidedStep("float16", rows, images, elements))
    found.append(Prepare("float16", rows, images, elements))
    return found
