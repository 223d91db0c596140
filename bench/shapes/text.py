"""Teach the text encoders the scene before the UNet sees them: which thing stands in which cell.

Both encoders read causally, so only the end of a sequence has seen the whole caption. The longest
caption has 23 tokens of 32; the last nine positions, always padding, are taught to tell what stands
in the nine cells of the picture, and the pooled vector to tell all of it. Cross attention then
finds each thing bound to its colour, shape, size and place.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffusion_rt.bench.shapes import clock, model
from diffusion_rt.bench.shapes.captions import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    Kind,
    Scene,
    caption,
    fragment,
    held_out,
    sample_scene,
    sample_wording,
)

CELLS = 9
CLASSES = (len(SHAPES) + 1, len(COLOURS), len(SIZES))  # shape 0: nothing in this cell
Texts = tuple[CLIPTextModel, CLIPTextModelWithProjection]
Tokenizers = tuple[CLIPTokenizer, CLIPTokenizer]


def tokens(tokenizers: Tokenizers, captions: list[str]) -> list[torch.Tensor]:
    """Token ids of both encoders, each [n, 32]."""
    return [
        t(
            captions,
            padding="max_length",
            max_length=t.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        for t in tokenizers
    ]


def encode(texts: Texts, ids: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Context [n, 32, 192] and pooled [n, 128], as `StableDiffusionXLPipeline` makes them."""
    outputs = [t(i, output_hidden_states=True) for t, i in zip(texts, ids, strict=True)]
    context = torch.cat([o.hidden_states[-2] for o in outputs], dim=-1)
    return context, outputs[1].text_embeds


def targets(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes of every cell [n, 9, 3] (-100 where empty, but for the shape) and background [n]."""
    cells = torch.full((len(scenes), CELLS, 3), -100)
    cells[:, :, 0] = 0
    for i, scene in enumerate(scenes):
        for t in scene.things:
            row = (SHAPES.index(t.shape) + 1, COLOURS.index(t.colour), SIZES.index(t.size))
            cells[i, t.cell] = torch.tensor(row)
    return cells, torch.tensor([BACKGROUNDS.index(s.background) for s in scenes])


class Reader(nn.Module):
    """Linear heads that read the scene from each encoder's last positions and the pooled vector."""

    def __init__(self) -> None:
        super().__init__()
        count = sum(CLASSES)
        self.cells = nn.ModuleList(nn.Linear(w, count) for w in model.WIDTHS)
        self.grounds = nn.ModuleList(nn.Linear(w, len(BACKGROUNDS)) for w in model.WIDTHS)
        self.pooled = nn.Linear(model.POOLED, CELLS * count + len(BACKGROUNDS))

    def forward(
        self, context: torch.Tensor, pooled: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Three readings, each the logits of cells [n, 9, 17] and of the background [n, 6]."""
        readings = []
        for part, cell, ground in zip(
            context.split(model.WIDTHS, dim=-1), self.cells, self.grounds, strict=True
        ):
            readings.append((cell(part[:, -CELLS:]), ground(part[:, -CELLS:]).mean(1)))
        flat = self.pooled(pooled)
        whole = flat[:, : -len(BACKGROUNDS)].unflatten(1, (CELLS, sum(CLASSES)))
        return [*readings, (whole, flat[:, -len(BACKGROUNDS) :])]


def reading_loss(
    readings: list[tuple[torch.Tensor, torch.Tensor]], cells: torch.Tensor, ground: torch.Tensor
) -> torch.Tensor:
    """Cross entropy of all readings, summed over attributes; shapes count their nine cells."""
    total = torch.zeros(())
    for cell_logits, ground_logits in readings:
        total = total + F.cross_entropy(ground_logits, ground)
        for i, logits in enumerate(cell_logits.split(CLASSES, dim=-1)):
            weight = 4.0 if i == 0 else 1.0
            total = total + weight * F.cross_entropy(logits.flatten(0, 1), cells[:, :, i].flatten())
    return total


def all_read(
    readings: list[tuple[torch.Tensor, torch.Tensor]], cells: torch.Tensor, ground: torch.Tensor
) -> list[float]:
    """The share of captions that each reading gets right in every part."""
    shares = []
    for cell_logits, ground_logits in readings:
        right = ground_logits.argmax(-1) == ground
        for i, logits in enumerate(cell_logits.split(CLASSES, dim=-1)):
            same = (logits.argmax(-1) == cells[:, :, i]) | (cells[:, :, i] < 0)
            right &= same.all(1)
        shares.append(right.float().mean().item())
    return shares


def batch_of(
    rng: np.random.Generator, count: int, omit: float, test: bool = False
) -> tuple[list[Scene], list[str]]:
    """Scenes of all kinds with their captions, out of training's share or the held-out one."""
    kinds: tuple[Kind, ...] = ("single", "relation", "relation", "pair", "pair", "row")
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng, kinds[int(rng.integers(len(kinds)))])
        if held_out(scene) == test:
            scenes.append(scene)
    return scenes, [words_for(s, rng, omit) for s in scenes]


def words_for(scene: Scene, rng: np.random.Generator, omit: float) -> str:
    """A caption in random wording; where parts may be left out, sometimes only a few words."""
    if omit and scene.kind == "single" and rng.random() < 0.15:
        return fragment(scene, rng)
    return caption(scene, sample_wording(rng, omit))


def train(state_path: Path, minutes: float, peak: float, batch: int) -> None:
    """Train for `minutes` in all; a second call goes on where the first stopped."""
    torch.manual_seed(1)
    torch.set_flush_denormal(True)
    texts, reader = model.build_texts(), Reader()
    modules = nn.ModuleList([*texts, reader])
    tokenizers = model.build_tokenizers(state_path.parent / "tokenizers")
    optimizer = torch.optim.AdamW(
        modules.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    step, watch = 0, clock.Clock(minutes)
    if state_path.exists():
        state = clock.load(state_path)
        modules.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, watch.spent = state["step"], state["seconds"]
    watch.start()
    saved = watch.seconds
    while watch.progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = clock.rate(watch.progress, peak, warm=0.03)
        scenes, captions = batch_of(np.random.default_rng([2, step]), batch, omit=0.07)
        context, pooled = encode(texts, tokens(tokenizers, captions))
        cells, ground = targets(scenes)
        loss = reading_loss(reader(context, pooled), cells, ground)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            print(
                f"step {step} {watch.seconds:.0f} s {evaluate(texts, reader, tokenizers)}",
                flush=True,
            )
        if watch.seconds - saved > 60 or watch.progress >= 1:
            saved = watch.seconds
            state = {"model": modules.state_dict(), "optimizer": optimizer.state_dict()}
            clock.save(state_path, {**state, "step": step, "seconds": saved})


@torch.inference_mode()
def evaluate(texts: Texts, reader: Reader, tokenizers: Tokenizers) -> dict[str, Any]:
    """Loss and shares read right on held-out captions that leave nothing out."""
    scenes, captions = batch_of(np.random.default_rng(10**6), 256, omit=0.0, test=True)
    context, pooled = encode(texts, tokens(tokenizers, captions))
    cells, ground = targets(scenes)
    readings = reader(context, pooled)
    return {
        "loss": round(reading_loss(readings, cells, ground).item(), 4),
        "right": [round(share, 3) for share in all_read(readings, cells, ground)],
        "rms": [round(v.square().mean().sqrt().item(), 2) for v in (context, pooled)],
    }


def load_texts(state_path: Path) -> tuple[Texts, Reader]:
    """The trained encoders and the heads that read them."""
    texts, reader = model.build_texts(), Reader()
    nn.ModuleList([*texts, reader]).load_state_dict(clock.load(state_path)["model"])
    return texts, reader


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    train(options.state, options.minutes, options.rate, options.batch)


if __name__ == "__main__":
    main()
