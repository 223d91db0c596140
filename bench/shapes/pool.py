"""The pictures the UNet learns from: drawn and encoded once, more of them as training goes on."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from diffusion_rt.bench.shapes.captions import Kind, Scene, Size, held_out, sample_scene
from diffusion_rt.bench.shapes.draw import View, draw, fits, plain_view

BUCKETS: tuple[Size, ...] = ((128, 128), (96, 160), (160, 96), (112, 144), (144, 112))
BUCKET_SHARES = (0.76, 0.06, 0.06, 0.06, 0.06)
KINDS: tuple[Kind, ...] = ("single", "relation", "pair", "row")
KIND_SHARES = (0.25, 0.43, 0.20, 0.12)
SOFT, CROPPED = 0.08, 0.04  # shares of enlarged small pictures and of crops


@dataclass(frozen=True, slots=True)
class Sample:
    """What picture number `index` shows and how it was taken."""

    scene: Scene
    view: View
    index: int


def plan(seed: int, index: int) -> Sample:
    """Picture number `index`, always the same one; never one that is held out."""
    rng = np.random.default_rng([seed, index])
    size = BUCKETS[int(rng.choice(len(BUCKETS), p=BUCKET_SHARES))]
    view = plain_view(size)
    chance = rng.random()
    if chance < SOFT:
        view = View(size, size, shrink=2 if rng.random() < 0.5 else 4)
    elif chance < SOFT + CROPPED:
        more = [8 * int(n) for n in rng.integers(0, 5, 2)]
        crop = (int(rng.integers(more[0] + 1)), int(rng.integers(more[1] + 1)))
        view = View(size, (size[0] + more[0], size[1] + more[1]), crop)
    kind = KINDS[int(rng.choice(len(KINDS), p=KIND_SHARES))]
    while True:
        scene = sample_scene(rng, kind)
        if fits(scene, view.canvas) and not held_out(scene):
            return Sample(scene, view, index)


def picture(seed: int, sample: Sample) -> NDArray[np.uint8]:
    """The pixels of a planned sample."""
    return draw(sample.scene, sample.view, np.random.default_rng([seed, sample.index, 1]))


class Pool:
    """Latents of the pictures of one worker, kept in one file per bucket.

    `seed` names the worker's stream of pictures. `capacity` bounds the file of each bucket; a file
    that is there already is used again, as far as its ledger says it was filled.
    """

    def __init__(self, folder: Path, seed: int, capacity: int, vae: AutoencoderKL) -> None:
        self.seed, self.vae = seed, vae
        self.samples: dict[Size, list[Sample]] = {size: [] for size in BUCKETS}
        self.count = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.ledger = folder / f"pool-{seed}.json"
        self.stored = json.loads(self.ledger.read_text())["stored"] if self.ledger.exists() else 0
        self.latents: dict[Size, np.memmap[tuple[int, ...], np.dtype[np.float32]]] = {}
        for size, share in zip(BUCKETS, BUCKET_SHARES, strict=True):
            path = folder / f"pool-{seed}-{size[0]}x{size[1]}.npy"
            rows = int(capacity * share * 1.2) + 64
            shape = (rows, 4, size[0] // 8, size[1] // 8)
            mode = "r+" if self.stored and path.exists() else "w+"
            self.latents[size] = open_memmap(path, mode=mode, dtype=np.float32, shape=shape)

    @torch.inference_mode()
    def grow(self, count: int, chunk: int = 32) -> None:
        """Have `count` pictures in all, encoding those not stored yet."""
        while self.count < count:
            new: dict[Size, list[Sample]] = {size: [] for size in BUCKETS}
            for index in range(self.count, min(self.count + chunk, count)):
                sample = plan(self.seed, index)
                new[sample.view.size].append(sample)
            for size, samples in new.items():
                start = len(self.samples[size])
                missing = [s for s in samples if s.index >= self.stored]
                if missing:
                    pixels = np.stack([picture(self.seed, s) for s in missing])
                    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
                    latent = (
                        self.vae.encode(images).latent_dist.mode() * self.vae.config.scaling_factor
                    )
                    end = start + len(samples)
                    self.latents[size][end - len(missing) : end] = latent.numpy()
                self.samples[size] += samples
            self.count = min(self.count + chunk, count)

    def flush(self) -> None:
        """Make what is encoded last over a stop."""
        for latents in self.latents.values():
            latents.flush()
        self.stored = max(self.stored, self.count)
        self.ledger.write_text(json.dumps({"stored": self.stored}))

    def take(
        self, rng: np.random.Generator, size: Size, count: int
    ) -> tuple[torch.Tensor, list[Sample]]:
        """`count` random pictures of one bucket: scaled latents and what they show."""
        rows = np.sort(rng.integers(0, len(self.samples[size]), count))
        latents = torch.from_numpy(np.ascontiguousarray(self.latents[size][rows]))
        return latents, [self.samples[size][int(r)] for r in rows]
