import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import Defaults, FileRecord, Manifest, UnetRecord, VaeRecord
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native.forecast import Forecaster, Work
from diffusion_rt.engines.ort.backend import OrtBackend
from diffusion_rt.runtime import memory
from diffusion_rt.runtime.memory import (
    Fit,
    Tiling,
    budget,
    decoder_bytes,
    fit,
    unet_bytes,
    weight_bytes,
)
from diffusion_rt.runtime.pipeline import SHIPPED, Pipeline
from diffusion_rt.runtime.request import Request
from support.model_folders import WEIGHTS, WIDTHS, make_model_folder, manifest_of

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


def fitted(manifest: Manifest, room: int | None, **args: Any) -> Fit:
    asked: dict[str, Any] = {
        "width": 1024,
        "height": 1024,
        "rows": 2,
        "images": 4,
        "tiling": "auto",
    } | args
    return fit(manifest, **asked, room=room)


ONE = unet_bytes(SDXL_UNET, 2, 128, 128)
WHOLE = decoder_bytes(SDXL_VAE, 128, 128)


def test_attention_scores_are_the_first_to_fill_the_memory() -> None:
    # Ten heads of 4,096 by 4,096 float32 are 671 MB; scores and softmax, two rows.
    assert unet_bytes(SDXL_UNET, 2, 128, 128) > 4 * 671e6
    assert unet_bytes(SDXL_UNET, 4, 128, 128) == 2 * unet_bytes(SDXL_UNET, 2, 128, 128)
    assert decoder_bytes(SDXL_VAE, 128, 128) > 16384**2 * 4


def test_with_room_all_images_go_together_in_one_pass(sdxl: Manifest) -> None:
    wanted = Fit(latent_shape=(4, 128, 128), group=4, tile=None)
    assert fitted(sdxl, 10**12) == wanted
    assert fitted(sdxl, None) == wanted


@pytest.mark.parametrize(("images", "group"), [(3.5, 3), (1.2, 1), (9, 4)])
def test_images_are_grouped_by_what_fits_beside_the_decoder(
    sdxl: Manifest, images: float, group: int
) -> None:
    assert fitted(sdxl, int(ONE * images) + WHOLE).group == group


def test_what_cannot_fit_is_refused_with_the_way_out(sdxl: Manifest) -> None:
    with pytest.raises(BadInput, match=r"4096x4096 needs .* GB .*--guidance-scale 1"):
        fitted(sdxl, 10**10, width=4096, height=4096)
    with pytest.raises(BadInput, match=r"try a smaller size$"):
        fitted(sdxl, 10**8, rows=1)
    with pytest.raises(BadInput, match=r"or --vae-tiling auto$"):
        fitted(sdxl, ONE + WHOLE // 2, tiling="off")


@given(
    room=st.integers(0, 10**11),
    width=st.integers(1, 300).map(lambda n: 8 * n),
    height=st.integers(1, 300).map(lambda n: 8 * n),
    rows=st.sampled_from([1, 2]),
    images=st.integers(1, 9),
    tiling=st.sampled_from(["auto", "on", "off"]),
)
def test_what_is_planned_fits(room: int, tiling: Tiling, images: int, **sizes: int) -> None:
    manifest = SimpleNamespace(
        unet=SDXL_UNET, vae=SDXL_VAE, defaults=SimpleNamespace(width=1024, height=1024)
    )
    try:
        found = fit(cast(Manifest, manifest), room=room, images=images, tiling=tiling, **sizes)
    except BadInput:
        return
    _, height, width = found.latent_shape
    tile = found.tile or max(height, width)
    unet = found.group * unet_bytes(SDXL_UNET, sizes["rows"], height, width)
    assert unet + decoder_bytes(SDXL_VAE, min(height, tile), min(width, tile)) <= room
    assert 1 <= found.group <= images


def test_a_decode_that_cannot_fit_goes_by_tiles(sdxl: Manifest) -> None:
    assert fitted(sdxl, ONE + WHOLE).tile is None
    assert fitted(sdxl, ONE + WHOLE - 1).tile == 64
    big = unet_bytes(SDXL_UNET, 1, 256, 256)
    assert fitted(sdxl, big + WHOLE, width=2048, height=2048, rows=1).tile == 128
    assert fitted(sdxl, 10**12, tiling="on").tile == 128
    assert fitted(sdxl, None, tiling="on").tile == 128
    assert fitted(sdxl, ONE + WHOLE, tiling="off").tile is None
    with pytest.raises(BadInput, match="one of auto, on, off"):
        fitted(sdxl, None, tiling="maybe")


def test_a_size_that_the_vae_does_not_divide_is_refused(sdxl: Manifest) -> None:
    coarse = replace(sdxl, vae=replace(SDXL_VAE, factor=16))
    assert fitted(coarse, None, width=992).latent_shape == (4, 64, 62)
    with pytest.raises(BadInput, match=r"width=1000 is no multiple of 16, .* try 992"):
        fitted(coarse, None, width=1000)


COUNT = WIDTHS[0] * WIDTHS[1] + WIDTHS[1]  # values of the small model's weights


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_weights_are_counted_as_float32(tmp_path: Path, stored: str) -> None:
    folder = open_model(make_model_folder(tmp_path / "model", stored=stored).path)
    assert weight_bytes(folder) == {"unet": 4 * COUNT}


@pytest.mark.parametrize(
    ("stored", "copied"), [(np.float16, 6 + 2 * 3 * 9), (np.float32, 2 * 3 * 9)]
)
def test_matrices_of_large_float32_files_are_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: type, copied: int
) -> None:
    (tmp_path / "unet").mkdir()
    kernel: NDArray[Any] = np.zeros((2, 3, 3, 3), stored)
    tensors: dict[str, NDArray[Any]] = {"matrix": kernel[:, :, 0, 0].copy(), "kernel": kernel}
    save_file(tensors, tmp_path / WEIGHTS)
    folder = ModelFolder(tmp_path, manifest_of(tmp_path, {}), "0" * 64)
    assert weight_bytes(folder) == {"unet": 4 * 60}
    monkeypatch.setattr(memory, "MAPPED", 1)
    assert weight_bytes(folder) == {"unet": 4 * copied}


def test_the_budget_is_what_weights_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_model(make_model_folder(tmp_path / "model").path)
    monkeypatch.setattr(memory, "available", lambda: None)
    assert budget(folder) is None
    monkeypatch.setattr(memory, "available", lambda: 100_000)
    assert budget(folder) == 90_000 - 4 * COUNT


def test_a_full_size_model_does_not_fit_into_eight_gigabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sparse_sdxl(tmp_path)
    assert 13e9 < sum(weight_bytes(folder).values()) < 15e9
    monkeypatch.setattr(memory, "available", lambda: 8 * 10**9)
    with pytest.raises(
        BadInput, match=r"^small needs about 1\d\.\d GB .* 8\.0 GB is free; "
    ) as error:
        budget(folder)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(memory, "available", lambda: 32 * 10**9)
    assert 14e9 < (budget(folder) or 0) < 16e9


def test_needs_of_less_than_a_gigabyte_are_told_in_megabytes(sdxl: Manifest) -> None:
    with pytest.raises(BadInput, match=r"about 2 MB to denoise and \d+ MB to decode, and 0 MB is"):
        fitted(sdxl, -1, width=64, height=64, rows=1)


def test_tiles_that_a_budget_of_the_device_chose_draw_the_same_picture() -> None:
    """512x512 by tiles of 256x256, which `--memory` picks where the decoder is the widest stage.

    Normalisation and attention see one tile at a time: 2.5 levels of 255 were seen on average.
    """
    model = open_model(SHIPPED)
    work = Work(height=64, width=64, rows=1, images=1, tokens=32)
    whole = Forecaster(model, "float16")(work)
    budget = (whole.denoise.total + whole.decode.total) // 2
    request = Request(
        prompt="a large red circle on a white background",
        width=512,
        height=512,
        num_inference_steps=4,
        guidance_scale=1.0,
        seed=7,
    )
    pictures = []
    for room, tile in ((None, None), (budget, 32)):
        with Pipeline(model, OrtBackend(model), memory=room) as pipeline:
            assert pipeline.settle(request).room.tile == tile
            (image,) = pipeline.generate(request).images
            pictures.append(np.asarray(image).astype(float))
    one, tiled = pictures
    assert one.std() > 20
    assert 0 < np.abs(tiled - one).mean() < 5
    assert np.corrcoef(one.ravel(), tiled.ravel())[0, 1] > 0.99


def sparse_sdxl(path: Path) -> ModelFolder:
    """A folder with the float16 weights of SDXL by their number, in files without blocks on disk.

    One tensor for each part; for UNet, text encoders and VAE as Podell et al. (2023) count them.
    """
    counts = {"unet": 2567463684, "text_encoder": 123060480, "text_encoder_2": 694659840}
    files = {}
    for part, count in (counts | {"vae": 83653863}).items():
        name = f"{part}/model.safetensors"
        entry = {"dtype": "F16", "shape": [count], "data_offsets": [0, 2 * count]}
        header = json.dumps({"w": entry}).encode()
        (path / part).mkdir()
        with (path / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 2 * count)
        files[name] = FileRecord(size=8 + len(header) + 2 * count, sha256="0" * 64)
    return ModelFolder(path, replace(manifest_of(path / "none", {}), files=files), "0" * 64)


def limit(group: Path, most: str, used: int) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text("anon 9\ninactive_file 100\nactive_file 200\n")


def test_available_is_the_smallest_of_kernel_and_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo, group, own = tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "own"
    for name, path in (("MEMINFO", meminfo), ("CGROUP", group), ("OWN_GROUP", own)):
        monkeypatch.setattr(memory, name, path)
    assert memory.available() is None
    meminfo.write_text("MemTotal: 99 kB\nMemAvailable:    5000 kB\n")
    assert memory.available() == 5_120_000
    limit(group, "4000000", 3_500_000)  # as in a container, which sees its own group as the root
    assert memory.available() == 500_300
    limit(group, "max", 3_500_000)
    assert memory.available() == 5_120_000
    own.write_text("1:name=systemd:/old\n0::/user.slice/job\n")
    assert memory.available() == 5_120_000
    limit(group / "user.slice", "3000000", 1_000_000)
    limit(group / "user.slice" / "job", "max", 10)
    assert memory.available() == 2_000_300
    limit(group / "user.slice" / "job", "1000", 5000)
    assert memory.available() == 0
