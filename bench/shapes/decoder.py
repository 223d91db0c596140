"""Sharpen the VAE's decoder alone, on slightly noisy latents, while its encoder stays frozen.

The UNet learns the frozen encoder's latents and never makes them quite: a decoder that has seen
noise draws clean edges from what the UNet gives it.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffusion_rt.bench.shapes import clock, muon, parallel, vae
from diffusion_rt.bench.shapes.parallel import Exchange

NOISE = 0.15  # most noise on a latent, as a share of the latents' own deviation
WINDOW = 64  # pixels of the square, around edges, that most steps look at


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One run: the frozen VAE's state, the new one's, and how long."""

    source: Path
    state: Path
    minutes: float
    peak: float = 2e-3
    batch: int = 4  # pictures of each worker and step, or four windows of each
    workers: int = 2


def window(
    rng: np.random.Generator, latent: torch.Tensor, pictures: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A square of each picture and of its latent, the busiest of four random ones."""
    latents, squares = [], []
    side = WINDOW // 8
    for one, picture in zip(latent, pictures, strict=True):
        best, most = (0, 0), -1.0
        for top, left in rng.integers(0, latent.shape[-1] - side + 1, (4, 2)):
            part = picture[:, 8 * top : 8 * top + WINDOW, 8 * left : 8 * left + WINDOW]
            if (busy := float(part.diff(dim=-1).abs().mean())) > most:
                best, most = (int(top), int(left)), busy
        top, left = best
        latents.append(one[:, top : top + side, left : left + side])
        squares.append(picture[:, 8 * top : 8 * top + WINDOW, 8 * left : 8 * left + WINDOW])
    return torch.stack(latents), torch.stack(squares)


def work(rank: int, settings: Settings, exchange: Exchange) -> None:
    """One worker's whole run; worker 0 keeps the clock and writes the state."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    autoencoder = vae.load(settings.source).to(memory_format=torch.channels_last)
    autoencoder.encoder.requires_grad_(False)
    autoencoder.quant_conv.requires_grad_(False)
    trained = torch.nn.ModuleList([autoencoder.decoder, autoencoder.post_quant_conv])
    parameters = list(trained.parameters())
    hidden, others = muon.divide(trained)
    optimizers: list[torch.optim.Optimizer] = [
        muon.Muon(hidden, lr=settings.peak),
        torch.optim.AdamW(others, lr=settings.peak, betas=(0.9, 0.99), weight_decay=0, fused=True),
    ]
    step, watch = 0, clock.Clock(settings.minutes)
    if settings.state.exists():
        state = clock.load(settings.state)
        autoencoder.load_state_dict(state["model"])
        for optimizer, part in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)
        step, watch.spent = state["step"], state["seconds"]
    scale = autoencoder.config.scaling_factor
    test = vae.whole(np.random.default_rng(10**6), 32)
    watch.start()
    saved, progress = watch.seconds, watch.progress
    while progress < 1:
        rng = np.random.default_rng([6, step, rank])
        windows = np.random.default_rng([6, step]).random() < 0.7
        pictures = vae.whole(rng, settings.batch)
        with torch.no_grad():
            latent = autoencoder.encode(pictures).latent_dist.mode()
        if windows:
            latent, pictures = (t.repeat_interleave(4, 0) for t in (latent, pictures))
            latent, pictures = window(rng, latent, pictures)
        noise = torch.from_numpy(rng.standard_normal(latent.shape, dtype=np.float32))
        amount = torch.from_numpy(rng.random((len(latent), 1, 1, 1), dtype=np.float32)) * NOISE
        latent = (latent + amount * noise / scale).contiguous(memory_format=torch.channels_last)
        output = autoencoder.decode(latent).sample
        loss = vae.loss_terms(output, pictures)
        trained.zero_grad(set_to_none=True)
        loss.backward()
        progress = vae.share_gradients(parameters, exchange, rank, step, watch.progress)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            rate = clock.rate(progress, settings.peak, warm=0.02, decay=0.6)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        step += 1
        if rank == 0 and step % 100 == 0:
            line = f"step {step} {watch.seconds:.0f} s loss {loss.item():.4f}"
            if step % 500 == 0:
                line += f" psnr {vae.psnr(autoencoder, test):.2f}"
                line += f" noisy {vae.psnr(autoencoder, test, 0.1):.2f}"
            print(line, flush=True)
        if rank == 0 and (watch.seconds - saved > 60 or progress >= 1):
            saved = watch.seconds
            state = {
                "model": autoencoder.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "scale": scale,
                "step": step,
                "seconds": saved,
            }
            clock.save(settings.state, state)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="state of the trained VAE")
    parser.add_argument("--state", type=Path, required=True, help="state of this run")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    settings = Settings(
        source=options.source,
        state=options.state,
        minutes=options.minutes,
        workers=options.workers,
    )
    autoencoder = vae.load(options.source)
    size = sum(p.numel() for p in autoencoder.decoder.parameters())
    size += sum(p.numel() for p in autoencoder.post_quant_conv.parameters())
    parallel.run(work, settings, size, settings.workers)


if __name__ == "__main__":
    main()
