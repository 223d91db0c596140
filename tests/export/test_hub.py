"""Names on the hub: which files are asked for, and what is said when they cannot be had."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import errors

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.export.checkpoint import open_checkpoint
from diffusion_rt.export.hub import download, is_hub_name
from support.checkpoints import MakeCheckpoint


class Hub:
    """A hub with one model, downloaded as links into a store of blobs, as the hub's cache does."""

    def __init__(self, model: Path, cache: Path) -> None:
        self.model, self.cache = model, cache
        self.asked: list[list[str]] = []

    def snapshot_download(self, name: str, *, allow_patterns: Sequence[str]) -> str:
        assert name == "owner/model"
        self.asked.append(list(allow_patterns))
        snapshot = self.cache / "snapshots/0123"
        snapshot.mkdir(parents=True, exist_ok=True)
        for path in self.model.rglob("*"):
            file = str(path.relative_to(self.model))
            if path.is_file() and any(fnmatch(file, pattern) for pattern in allow_patterns):
                link = snapshot / file
                link.parent.mkdir(exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to(path)
        return str(snapshot)


@pytest.fixture
def hub(checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(checkpoint("model"), tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def test_which_texts_are_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("stabilityai/stable-diffusion-xl-base-1.0")
    for text in ("./a/b", "/a/b", "a", "a/b/c", "a/../b", "../b", "a b/c", "a/b\n", ""):
        assert not is_hub_name(text)
    (tmp_path / "owner/model").mkdir(parents=True)
    assert not is_hub_name("owner/model")


def test_a_model_without_variants(hub: Hub) -> None:
    (hub.model / "unet/diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (hub.model / "unet/model.onnx").write_bytes(b"graph")
    folder = download("owner/model")
    there = {p.name for p in folder.rglob("*") if p.is_file()}
    assert not any(name.endswith((".bin", ".onnx")) for name in there)
    assert set(open_checkpoint(folder).tables)
    for patterns in hub.asked:
        assert not any(
            p.endswith(("*", ".bin", ".ckpt", ".pt")) and "tokenizer" not in p for p in patterns
        )


def test_half_the_download_is_preferred(hub: Hub, checkpoint: MakeCheckpoint) -> None:
    checkpoint("model", variant="fp16", dtype="float16")
    folder = download("owner/model")
    tables = open_checkpoint(folder).tables
    assert all(".fp16." in file for file in tables)
    assert not (folder / "unet/diffusion_pytorch_model.safetensors").exists()


def test_shards_come_with_their_index(hub: Hub, checkpoint: MakeCheckpoint) -> None:
    for path in hub.model.rglob("*.safetensors"):
        path.unlink()
    checkpoint("model", shards=2)
    assert len(open_checkpoint(download("owner/model")).tables) == 8


def test_a_variant_by_name(hub: Hub, checkpoint: MakeCheckpoint) -> None:
    checkpoint("model", variant="bf16", dtype="bfloat16")
    folder = download("owner/model", variant="bf16")
    assert all(".bf16." in file for file in open_checkpoint(folder, variant="bf16").tables)
    with pytest.raises(BadInput, match="no weights of variant fp8"):
        download("owner/model", variant="fp8")


def response() -> Any:
    return Mock(status_code=404, headers={}, request=Mock(url="u", method="GET"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.RepositoryNotFoundError("none", response=response()), "no such model on the hub"),
        (errors.GatedRepoError("gated", response=response()), "accept its terms"),
        (errors.LocalEntryNotFoundError("offline"), "check the connection and HF_HUB_OFFLINE"),
        (errors.OfflineModeIsEnabled("offline"), "check the connection and HF_HUB_OFFLINE"),
        (errors.HfHubHTTPError("500\nserver", response=response()), "failed: .*again to resume"),
        (OSError(28, "No space left on device"), "No space left on device; run it again"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_why_a_download_failed(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Mock(side_effect=error))
    with pytest.raises(BadInput, match=words) as caught:
        download("owner/model")
    assert "\n" not in str(caught.value)


def test_offline_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE"):
        download("owner/model")
