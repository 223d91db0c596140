"""The arithmetic of an SDXL UNet, counted from its config alone, as an oracle for plans."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The published config of SDXL base 1.0, as far as it says how much is computed.
SDXL_BASE: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "projection_class_embeddings_input_dim": 2816,
    "in_channels": 4,
    "out_channels": 4,
}


@dataclass(slots=True)
class Work:
    """FLOPs, a multiply and an add each one, by the part of the UNet that computes them."""

    unet_prompt: int = 0
    unet_timestep: int = 0
    unet_step: int = 0


def unet_work(config: Mapping[str, Any], rows: int, height: int, width: int, tokens: int) -> Work:
    """Of one evaluation for `rows` latents of height x width."""
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    depths = config["transformer_layers_per_block"]
    depths = [depths] * len(channels) if isinstance(depths, int) else depths
    heads = config["attention_head_dim"]  # SDXL's configs name the number of heads so
    context, embedded = config["cross_attention_dim"], 4 * channels[0]
    work = Work()

    def convolution(size: tuple[int, int], before: int, after: int, kernel: int = 3) -> None:
        work.unet_step += 2 * rows * size[0] * size[1] * before * after * kernel**2

    def resnet(size: tuple[int, int], before: int, after: int) -> None:
        convolution(size, before, after)
        convolution(size, after, after)
        if before != after:
            convolution(size, before, after, 1)
        work.unet_timestep += 2 * rows * embedded * after

    def transformer(size: tuple[int, int], level: int) -> None:
        pixels, width, depth = size[0] * size[1], channels[level], depths[level]
        inner = width // heads[level] * heads[level]  # a head's size is rounded down
        linear = 2 * width + depth * (6 + 12) * inner  # in and out; q, k, v, out, q, out; 8 and 4
        attended = 2 * depth * (pixels + tokens)
        work.unet_step += 2 * rows * pixels * inner * (linear + attended)
        work.unet_prompt += 2 * rows * depth * 2 * tokens * inner * context

    size, sizes = (height, width), [(height, width)]
    convolution(size, config["in_channels"], channels[0])
    skips, current = [channels[0]], channels[0]
    for level, (kind, after) in enumerate(zip(config["down_block_types"], channels, strict=True)):
        for _ in range(layers):
            resnet(size, current, after)
            current = after
            if kind.startswith("CrossAttn"):
                transformer(size, level)
            skips.append(after)
        if level + 1 < len(channels):
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
            sizes.append(size)
            convolution(size, after, after)
            skips.append(after)
    resnet(size, current, current)
    transformer(size, len(channels) - 1)
    resnet(size, current, current)
    for number, kind in enumerate(config["up_block_types"]):
        level = len(channels) - 1 - number
        after = channels[level]
        for _ in range(layers + 1):
            resnet(size, current + skips.pop(), after)
            current = after
            if kind.startswith("CrossAttn"):
                transformer(size, level)
        if level:
            size = sizes[level - 1]
            convolution(size, after, after)
    convolution(size, current, config["out_channels"])
    pooled = config["projection_class_embeddings_input_dim"]
    work.unet_prompt += 2 * rows * embedded * (pooled + embedded)
    work.unet_timestep += 2 * rows * embedded * (channels[0] + embedded)
    return work
