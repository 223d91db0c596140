"""Train the VAE of `shapes-xl`: first both halves, then the decoder alone on noisy latents."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from diffusion_rt.bench.shapes import clock, model, muon, parallel
from diffusion_rt.bench.shapes.captions import SHAPES, Kind, Scene, sample_scene
from diffusion_rt.bench.shapes.draw import (
    BACKDROP,
    PALETTE,
    RADIUS,
    Painted,
    Pixels,
    View,
    draw,
    fits,
    paint,
)
from diffusion_rt.bench.shapes.parallel import Exchange


def free_picture(rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    """A square of any colours, shapes anywhere and of any size: for the VAE alone."""
    drawn = rng.integers(0, 256, (4, 3))
    colours = [(int(r), int(g), int(b)) for r, g, b in drawn]
    named = list(PALETTE.values())
    for i in range(1, 4):
        if rng.random() < 0.6:
            colours[i] = named[int(rng.integers(len(named)))]
    if rng.random() < 0.6:
        colours[0] = list(BACKDROP.values())[int(rng.integers(len(BACKDROP)))]
    things: list[Painted] = []
    for i in range(int(rng.integers(1, 3))):
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        usual = list(RADIUS.values())[int(rng.integers(3))]
        radius = usual if rng.random() < 0.7 else rng.uniform(9, 28)
        x, y = rng.uniform(0, side, 2)
        things.append((shape, float(radius), colours[i + 1], float(x), float(y)))
    return paint(colours[0], things, (side, side))


def crops(rng: np.random.Generator, count: int, side: int = 64) -> torch.Tensor:
    """`count` squares with edges in them: [count, 3, side, side] in -1..1."""
    pictures = np.stack([free_picture(rng, side) for _ in range(count)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def whole(rng: np.random.Generator, count: int, side: int = 128) -> torch.Tensor:
    """`count` pictures as the UNet will learn them: [count, 3, side, side] in -1..1."""
    kinds: tuple[Kind, ...] = ("single", "relation", "pair", "row")
    pictures: list[Pixels] = []
    while len(pictures) < count:
        scene: Scene = sample_scene(rng, kinds[int(rng.integers(4))])
        if fits(scene, (side, side)):
            shrink = 2 if rng.random() < 0.08 else 1
            view = View((side, side), (side, side), shrink=shrink)
            pictures.append(draw(scene, view, rng))
    return to_tensor(np.stack(pictures))


def to_tensor(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """[n, height, width, 3] bytes to [n, 3, height, width] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


def loss_terms(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + 2 L2 + half the gradients' L1 + the colour of 8x8 blocks."""
    error = output - target
    dx, dy = error.diff(dim=-1), error.diff(dim=-2)
    blocks = F.avg_pool2d(error, 8)
    return (
        error.abs().mean()
        + 2 * error.square().mean()
        + 0.5 * (dx.abs().mean() + dy.abs().mean())
        + 4 * blocks.square().mean()
    )


def psnr(vae: AutoencoderKL, pictures: torch.Tensor, noise: float = 0.0) -> float:
    """Peak signal to noise in dB of reconstructions through the mean latent."""
    with torch.inference_mode():
        latent = vae.encode(pictures).latent_dist.mode()
        latent = latent + noise * latent.std() * torch.randn_like(latent)
        output = vae.decode(latent).sample.clamp(-1, 1)
    return 10 * math.log10(4 / (output - pictures).square().mean().item())


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One training run of both halves."""

    state: Path
    minutes: float
    peak: float = 2e-3
    batch: int = 16  # crops of each worker
    workers: int = 2


def work(rank: int, settings: Settings, exchange: Exchange) -> None:
    """One worker's whole run; worker 0 keeps the clock and writes the state."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    vae = model.build_vae().to(memory_format=torch.channels_last)
    parameters = list(vae.parameters())
    hidden, others = muon.divide(vae)
    optimizers: list[torch.optim.Optimizer] = [
        muon.Muon(hidden, lr=settings.peak),
        torch.optim.AdamW(others, lr=settings.peak, betas=(0.9, 0.99), weight_decay=0, fused=True),
    ]
    step, watch = 0, clock.Clock(settings.minutes)
    if settings.state.exists():
        state = clock.load(settings.state)
        vae.load_state_dict(state["model"])
        for optimizer, part in zip(optimizers, state.get("optimizers", []), strict=False):
            optimizer.load_state_dict(part)
        step, watch.spent = state["step"], state["seconds"]
    test = whole(np.random.default_rng(10**6), 32)
    watch.start()
    saved, progress = watch.seconds, watch.progress
    while progress < 1:
        rng = np.random.default_rng([1, step, rank])
        torch.manual_seed(2 * step + rank)
        on_crops = np.random.default_rng([1, step]).random() < (0.9 if progress < 0.6 else 0.4)
        pictures = crops(rng, settings.batch) if on_crops else whole(rng, settings.batch // 4)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(pictures).latent_dist
        output = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = loss_terms(output, pictures) + 2e-4 * kl
        vae.zero_grad(set_to_none=True)
        loss.backward()
        progress = share_gradients(parameters, exchange, rank, step, watch.progress)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = clock.rate(progress, settings.peak, decay=0.5)
            optimizer.step()
        step += 1
        if rank == 0 and step % 100 == 0:
            line = f"step {step} {watch.seconds:.0f} s loss {loss.item():.4f}"
            if step % 500 == 0:
                line += f" psnr {psnr(vae, test):.2f} noisy {psnr(vae, test, 0.1):.2f}"
            print(line, flush=True)
        if rank == 0 and (watch.seconds - saved > 60 or progress >= 1):
            saved = watch.seconds
            state = {"model": vae.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            if progress >= 1:
                state["scale"] = latent_scale(vae)
            clock.save(settings.state, {**state, "step": step, "seconds": watch.seconds})


def share_gradients(
    parameters: list[torch.nn.Parameter], exchange: Exchange, rank: int, step: int, progress: float
) -> float:
    """Average the gradients over the workers; returns worker 0's progress."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    progress = exchange.average(flat, rank, step, progress)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view(gradient.shape))
    return progress


@torch.inference_mode()
def latent_scale(vae: AutoencoderKL) -> float:
    """The factor that gives latents of training pictures a mean square of one."""
    latent = vae.encode(whole(np.random.default_rng(10**6 + 1), 256)).latent_dist.mode()
    means, deviations = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
    print(f"latent means {means.tolist()} deviations {deviations.tolist()}")
    return float(1 / latent.square().mean().sqrt())


def load(state_path: Path) -> AutoencoderKL:
    """The trained VAE with its scaling factor."""
    state = clock.load(state_path)
    vae = model.build_vae()
    vae.load_state_dict(state["model"])
    vae.register_to_config(scaling_factor=round(state.get("scale") or latent_scale(vae), 5))
    return vae.eval()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=14)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    settings = Settings(
        state=options.state,
        minutes=options.minutes,
        peak=options.rate,
        batch=options.batch,
        workers=options.workers,
    )
    size = sum(p.numel() for p in model.build_vae().parameters())
    parallel.run(work, settings, size, settings.workers)


if __name__ == "__main__":
    main()
