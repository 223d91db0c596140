"""Training: a stopped run goes on as if unbroken, and its parts are what they claim."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_rt.bench.shapes import clock, model, muon, text, train
from diffusion_rt.bench.shapes.parallel import Flat
from diffusion_rt.bench.shapes.pool import Pool
from diffusion_rt.bench.shapes.tokenizers import MAX_LENGTH


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained VAE and untrained text encoders, as training states."""
    folder: Path = tmp_path_factory.mktemp("states")
    torch.manual_seed(0)
    vae = model.build_vae()
    clock.save(folder / "vae.pt", {"model": vae.state_dict(), "scale": 0.5})
    modules = torch.nn.ModuleList([*model.build_texts(), text.Reader()])
    clock.save(folder / "text.pt", {"model": modules.state_dict()})
    return folder


def _run(source: Path, folder: Path, stops: list[int]) -> dict[str, torch.Tensor]:
    folder.mkdir()
    for name in ("vae.pt", "text.pt"):
        (folder / name).symlink_to(source / name)
    for steps in stops:
        settings = train.Settings(
            folder=folder,
            steps=steps,
            horizon=3,
            batch=1,
            workers=1,
            pictures=40,
            fresh=1,
            capacity=80,
            save_seconds=1e9,
        )
        train.train(settings)
    state: dict[str, torch.Tensor] = clock.load(folder / "unet.pt")
    return state


def test_a_resumed_run_ends_where_an_unbroken_one_does(trained: Path, tmp_path: Path) -> None:
    whole = _run(trained, tmp_path / "whole", [3])
    parts = _run(trained, tmp_path / "parts", [1, 3])
    assert whole["step"] == parts["step"] == 3
    for name in ("vector", "momentum", "ema"):
        assert torch.equal(whole[name], parts[name]), name
    assert not torch.equal(whole["vector"], whole["ema"])


def test_a_flat_module_computes_the_same() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    x = torch.randn(4, 3)
    before = module(x)
    flat = Flat(module)
    assert torch.equal(module(x), before)
    module(x).sum().backward()
    weight = next(module.parameters())
    assert weight.grad is not None
    assert flat.gradient[: 3 * 5].view(5, 3).equal(weight.grad)
    flat.vector.zero_()
    assert not module(x).any()


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_muon_makes_matrices_nearly_orthogonal(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(muon.orthogonalize(torch.randn(shape)))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_timesteps_are_spread_and_low_noise_counts_least() -> None:
    times = train.stratified(np.random.default_rng(0), 10)
    assert sorted((times // 100).tolist()) == list(range(10))
    signal = train.alphas_cumprod()
    weight = train.loss_weight(signal)
    assert signal[0] > 0.999
    assert signal[-1] < 0.005
    assert weight[-1] == 15
    assert (weight.diff() >= 0).all()
    assert weight[0] < 0.01


def test_a_pool_reads_back_what_it_encoded(trained: Path, tmp_path: Path) -> None:
    vae = model.build_vae(0.5)
    first = Pool(tmp_path, 7, 64, vae)
    first.grow(48)
    first.flush()
    second = Pool(tmp_path, 7, 64, vae)
    second.vae = None  # nothing needs encoding again
    second.grow(48)
    size = (128, 128)
    one, two = (p.take(np.random.default_rng(1), size, 5) for p in (first, second))
    assert torch.equal(one[0], two[0])
    assert one[1] == two[1]
    assert one[0].std() > 0


def test_the_learning_rate_rises_holds_and_ends_at_zero() -> None:
    rates = [clock.rate(p, 1.0, warm=0.1, decay=0.4) for p in (0.0, 0.05, 0.1, 0.6, 0.8, 1.0)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.5, 0.0])


def test_cells_are_read_from_the_padding_the_longest_caption_leaves(trained: Path) -> None:
    scenes, captions = text.batch_of(np.random.default_rng(0), 64, omit=0.0)
    tokenizers = model.build_tokenizers(trained / "tokenizers")
    for ids, tokenizer in zip(text.tokens(tokenizers, captions), tokenizers, strict=True):
        assert ids.shape == (64, MAX_LENGTH)
        assert (ids[:, -text.CELLS :] == tokenizer.pad_token_id).all()
    cells, _ground = text.targets(scenes)
    assert ((cells[:, :, 0] > 0).sum(1) == torch.tensor([len(s.things) for s in scenes])).all()
