"""Train the UNet of `shapes-xl` on frozen latents and frozen text."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from diffusion_rt.bench.shapes import clock, model, muon, parallel, text, vae
from diffusion_rt.bench.shapes.parallel import Exchange, Flat
from diffusion_rt.bench.shapes.pool import BUCKET_SHARES, BUCKETS, Pool, Sample

EMPTY_ZERO, EMPTY_TEXT = 0.08, 0.02  # shares of captions dropped as None and as ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One training run; `steps` of 0 means that `minutes` decide."""

    folder: Path
    minutes: float = 60.0
    steps: int = 0  # stop here
    horizon: int = 0  # steps the learning rate is planned for; 0: `steps`
    batch: int = 24  # of each worker
    workers: int = 2
    peak: float = 1.5e-3
    decay: float = 0.4
    ema: float = 0.998
    pictures: int = 8000  # of each worker, before the first step
    fresh: int = 3  # pictures each worker adds per step
    capacity: int = 60000
    save_seconds: float = 120.0


def alphas_cumprod() -> torch.Tensor:
    """The signal's share of the variance at each of the 1000 training timesteps."""
    roots = torch.linspace(model.BETA_START**0.5, model.BETA_END**0.5, 1000, dtype=torch.float64)
    return torch.cumprod(1 - roots**2, 0).float()


def loss_weight(signal: torch.Tensor) -> torch.Tensor:
    """min(SNR + 1, 5) / SNR, at most 15: low noise counts less than in plain epsilon loss."""
    snr = signal / (1 - signal)
    return torch.clamp(torch.clamp(snr + 1, max=5) / snr, max=15)


def stratified(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Timesteps spread evenly over 0..999, in random order."""
    at = (rng.permutation(count) + rng.random(count)) / count
    return torch.from_numpy((at * 1000).astype(np.int64).clip(0, 999))


class Conditions:
    """Captions to what the UNet reads, through the frozen text encoders."""

    def __init__(self, texts: text.Texts, tokenizers: text.Tokenizers) -> None:
        self.texts, self.tokenizers = texts, tokenizers

    @torch.no_grad()
    def __call__(
        self, samples: list[Sample], rng: np.random.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Context and added conditions, some of them emptied for guidance."""
        drop = rng.random(len(samples))
        captions = [
            "" if d < EMPTY_ZERO + EMPTY_TEXT else text.words_for(s.scene, rng, 0.05)
            for s, d in zip(samples, drop, strict=True)
        ]
        context, pooled = text.encode(self.texts, text.tokens(self.tokenizers, captions))
        zero = torch.from_numpy(drop < EMPTY_ZERO)
        context[zero] = 0
        pooled[zero] = 0
        time_ids = torch.tensor([s.view.time_ids for s in samples], dtype=torch.float32)
        return context, {"text_embeds": pooled, "time_ids": time_ids}


class Optimizer:
    """Muon for the matrices, shared out among the workers, and AdamW at worker 0 for the rest.

    The parameters and Muon's momentum lie in shared memory: each worker updates its share in place.
    """

    def __init__(self, unet: UNet2DConditionModel, exchange: Exchange, rank: int, peak: float):
        self.exchange, self.rank = exchange, rank
        hidden, others = muon.divide(unet)
        offsets, at = {}, 0
        for parameter in unet.parameters():
            offsets[id(parameter)] = at
            at += parameter.numel()
        hidden.sort(key=lambda p: -p.numel())
        self.mine = [
            (p, exchange.momentum[offsets[id(p)] :][: p.numel()].view(p.shape[0], -1))
            for p in hidden[rank :: exchange.workers]
        ]
        self.adam = torch.optim.AdamW(
            others, lr=peak, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, rate: float) -> None:
        """Clip to a norm of 1, then update; all workers have the new parameters at the end."""
        gradient.mul_(torch.clamp(1 / (gradient.norm() + 1e-6), max=1.0))
        for parameter, average in self.mine:
            assert parameter.grad is not None
            muon.apply(parameter.data, parameter.grad.view_as(average), average, rate)
        if self.rank == 0:
            self.adam.param_groups[0]["lr"] = rate
            self.adam.step()
        self.exchange.meet()


def step_loss(
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    context: torch.Tensor,
    added: dict[str, torch.Tensor],
    rng: np.random.Generator,
    signal: torch.Tensor,
) -> torch.Tensor:
    """The weighted epsilon loss of one batch."""
    timesteps = stratified(rng, len(latents))
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    share = signal[timesteps].view(-1, 1, 1, 1)
    noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
    output = unet(noisy, timesteps, context, added_cond_kwargs=added).sample
    error = (output - noise).square().mean((1, 2, 3))
    loss: torch.Tensor = (loss_weight(signal[timesteps]) * error).mean()
    return loss


def pictures_at(settings: Settings, step: int) -> int:
    """How many pictures each worker knows at a step; more are encoded every eighth one."""
    return min(settings.pictures + settings.fresh * (step - step % 8), settings.capacity)


def work(rank: int, settings: Settings, exchange: Exchange) -> None:
    """One worker's whole run; worker 0 keeps the clock and writes the state."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(2)
    folder = settings.folder
    unet = model.build_unet().train()
    if rank == 0:
        exchange.vector.copy_(Flat(unet).vector)
    exchange.meet()
    flat = Flat(unet, exchange.vector)
    optimizer = Optimizer(unet, exchange, rank, settings.peak)
    ema = flat.vector.clone()
    texts = text.load_texts(folder / "text.pt")[0]
    tokenizers = model.build_tokenizers(folder / f"tokenizers-{rank}")
    conditions = Conditions(texts, tokenizers)
    pool = Pool(folder / "pool", 100 + rank, settings.capacity, vae.load(folder / "vae.pt"))
    step, watch = 0, clock.Clock(settings.minutes)
    state_path = folder / "unet.pt"
    if state_path.exists():
        state = clock.load(state_path)
        step, watch.spent = state["step"], state["seconds"]
        if rank == 0:
            flat.vector.copy_(state["vector"])
            exchange.momentum.copy_(state["momentum"])
            optimizer.adam.load_state_dict(state["adam"])
            ema.copy_(state["ema"])
        del state
    watch.start()
    pool.grow(pictures_at(settings, step))
    pool.flush()
    exchange.meet()
    signal = alphas_cumprod()
    horizon = settings.horizon or settings.steps
    saved, losses = watch.seconds, []
    progress = step / horizon if horizon else watch.progress
    while progress < 1 and not (settings.steps and step >= settings.steps):
        if step % 8 == 0:
            pool.grow(pictures_at(settings, step))
        bucket = BUCKETS[int(np.random.default_rng([4, step]).choice(5, p=BUCKET_SHARES))]
        rng = np.random.default_rng([5, step, rank])
        latents, samples = pool.take(rng, bucket, settings.batch)
        context, added = conditions(samples, rng)
        loss = step_loss(unet, latents, context, added, rng, signal)
        flat.gradient.zero_()
        loss.backward()
        now = step / horizon if horizon else watch.progress
        progress = exchange.average(flat.gradient, rank, step, now)
        optimizer.step(flat.gradient, clock.rate(progress, settings.peak, 0.01, settings.decay))
        step += 1
        losses.append(loss.item())
        if rank == 0:
            ema.lerp_(flat.vector, 1 - min(settings.ema, (1 + step) / (10 + step)))
            if step % 100 == 0:
                seen = step * settings.batch * settings.workers
                mean = float(np.mean(losses[-100:]))
                print(f"step {step} seen {seen} {watch.seconds:.0f} s loss {mean:.4f}", flush=True)
        ended = progress >= 1 or step == settings.steps
        if watch.seconds - saved > settings.save_seconds or ended:
            saved = watch.seconds
            pool.flush()
            if rank == 0:
                state = {"vector": flat.vector, "momentum": exchange.momentum, "ema": ema}
                state |= {"adam": optimizer.adam.state_dict()}
                clock.save(state_path, {**state, "step": step, "seconds": watch.seconds})


def load_unet(path: Path) -> tuple[UNet2DConditionModel, int]:
    """The averaged UNet of a training state, and the steps it has seen."""
    state = clock.load(path)
    unet = model.build_unet()
    Flat(unet).vector.copy_(state["ema"])
    return unet, int(state["step"])


def train(settings: Settings) -> None:
    """Run all workers to the end; a second call goes on where the first stopped."""
    size = sum(p.numel() for p in model.build_unet().parameters())
    parallel.run(work, settings, size, settings.workers)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="has vae.pt and text.pt")
    parser.add_argument("--minutes", type=float, default=85)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--pictures", type=int, default=8000)
    options = parser.parse_args()
    train(
        Settings(
            folder=options.folder,
            minutes=options.minutes,
            batch=options.batch,
            peak=options.rate,
            pictures=options.pictures,
        )
    )


if __name__ == "__main__":
    main()
