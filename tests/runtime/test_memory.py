from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import Defaults, Manifest, UnetRecord, VaeRecord
from diffusion_rt.runtime import memory
from diffusion_rt.runtime.memory import Fit, decoder_bytes, fit, unet_bytes
from support.model_folders import manifest_of

SDXL_UNET = UnetRecord(in_channels=4, channels=(320, 640, 1280), heads=(0, 10, 20))
SDXL_VAE = VaeRecord(
    channels=4,
    factor=8,
    scaling_factor=0.13025,
    shift_factor=0.0,
    latents_mean=None,
    latents_std=None,
    force_upcast=True,
    decoder_channels=(128, 256, 512, 512),
)


@pytest.fixture
def sdxl(tmp_path: Path) -> Manifest:
    defaults = Defaults(width=1024, height=1024, steps=50, guidance_scale=5.0)
    (tmp_path / "unet").mkdir()
    return manifest_of(tmp_path, {}, unet=SDXL_UNET, vae=SDXL_VAE, defaults=defaults)


def fitted(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, free: int | None, **args: Any
) -> Fit:
    monkeypatch.setattr(memory, "available", lambda: free)
    asked: dict[str, Any] = {
        "width": 1024,
        "height": 1024,
        "rows": 2,
        "images": 4,
        "tiling": "auto",
    } | args
    return fit(manifest, **asked)


def test_attention_scores_are_the_first_to_fill_the_memory() -> None:
    # Ten heads of 4,096 by 4,096 float32 are 671 MB; scores and softmax, two rows.
    assert unet_bytes(SDXL_UNET, 2, 128, 128) > 4 * 671e6
    assert unet_bytes(SDXL_UNET, 4, 128, 128) == 2 * unet_bytes(SDXL_UNET, 2, 128, 128)
    assert decoder_bytes(SDXL_VAE, 128, 128) > 16384**2 * 4


def test_with_room_all_images_go_together_in_one_pass(
    sdxl: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Fit(latent_shape=(4, 128, 128), group=4, tile=None)
    assert fitted(sdxl, monkeypatch, 10**12) == wanted
    assert fitted(sdxl, monkeypatch, None) == wanted


def test_images_are_grouped_by_what_fits(sdxl: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    one = unet_bytes(SDXL_UNET, 2, 128, 128)
    assert fitted(sdxl, monkeypatch, int(one * 3.5)).group == 3
    assert fitted(sdxl, monkeypatch, int(one * 1.2)).group == 1


def test_what_cannot_fit_is_refused_with_the_way_out(
    sdxl: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match=r"4096x4096 needs .* GB .*--guidance-scale 1"):
        fitted(sdxl, monkeypatch, 10**10, width=4096, height=4096)
    with pytest.raises(BadInput, match=r"try a smaller size$"):
        fitted(sdxl, monkeypatch, 10**8, rows=1)


def test_a_decode_that_cannot_fit_goes_by_tiles(
    sdxl: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = decoder_bytes(SDXL_VAE, 128, 128) * 2
    assert fitted(sdxl, monkeypatch, free, rows=1).tile is None
    assert fitted(sdxl, monkeypatch, 27 * 10**9, width=2048, height=2048, rows=1).tile == 128
    assert fitted(sdxl, monkeypatch, 10**12, tiling="on").tile == 128
    assert fitted(sdxl, monkeypatch, free, tiling="off").tile is None
    with pytest.raises(BadInput, match="one of auto, on, off"):
        fitted(sdxl, monkeypatch, free, tiling="maybe")


def test_available_is_the_smaller_of_kernel_and_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo, group = tmp_path / "meminfo", tmp_path / "cgroup"
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP", group)
    assert memory.available() is None
    meminfo.write_text("MemTotal: 99 kB\nMemAvailable:    5000 kB\n")
    assert memory.available() == 5_120_000
    group.mkdir()
    (group / "memory.max").write_text("4000000\n")
    (group / "memory.current").write_text("3500000\n")
    (group / "memory.stat").write_text("anon 9\ninactive_file 100\nactive_file 200\n")
    assert memory.available() == 500_300
    (group / "memory.max").write_text("max\n")
    assert memory.available() == 5_120_000
