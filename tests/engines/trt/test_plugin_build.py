"""The attention plugin from `build` to the picture: simulated, or with `-m trt` on a real GPU."""

import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.trt.backend import open_trt
from diffusion_rt.engines.trt.build import build
from diffusion_rt.engines.trt.options import BuilderOptions, Options
from diffusion_rt.engines.trt.plan_file import read_header
from diffusion_rt.kernels import attention_plugin
from diffusion_rt.runtime.pipeline import SHIPPED, Pipeline
from diffusion_rt.runtime.request import Request
from support.simulated_tensorrt import plugin as simulated_plugin
from support.tensorrt_bench import COVERAGE, Kind

SMALL = replace(COVERAGE, buckets=COVERAGE.buckets[:1])
STEP = ("unet_step",)
PLAIN = Options(vae_precision="float32", builder=BuilderOptions(tf32=False))
PLUGIN = Options(
    vae_precision="float32",
    builder=BuilderOptions(tf32=False),
    attention={"unet_step": "plugin"},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """shapes-xl, without engines."""
    copied = tmp_path_factory.mktemp("plugin") / "shapes-xl"
    shutil.copytree(SHIPPED, copied)
    return open_model(copied)


def drawn(model: ModelFolder, gpu: Gpu) -> NDArray[Any]:
    """Two pictures."""
    request = Request(
        prompt="a large red circle above a small blue square on a green background",
        width=128,
        height=128,
        num_inference_steps=5,
        num_images_per_prompt=2,
        guidance_scale=4.0,
        seed=5,
    )
    with Pipeline(model, open_trt(model, gpu)) as pipeline:
        return np.stack([np.asarray(image) for image in pipeline.generate(request).images])


# Levels of 255 that pixels may differ by. Both compute in float16, rounded at other places; no GPU
# has run this yet, and the bound for a real one is a guess.
CLOSE = {"simulated": 1, "real": 12}


def test_pictures_with_and_without_it_are_the_same(
    folder: ModelFolder, gpu: Gpu, kind: Kind
) -> None:
    build(folder, SMALL, PLAIN, device=gpu.device, made_by="tests")
    without = drawn(folder, gpu)
    summary = build(folder, SMALL, PLUGIN, device=gpu.device, made_by="tests", graphs=STEP)
    (built,) = [each for each in summary.built if not each.kept]
    assert "attention tensorrt, now plugin" in "; ".join(built.reasons)
    header = read_header(built.path.parent, "unet_step")
    assert header is not None
    assert header.key.plugin == attention_plugin.sha256()
    found = drawn(folder, gpu)
    assert without.std() > 10, "a flat picture proves nothing"
    assert np.abs(found.astype(int) - without).max() <= CLOSE[kind]
    again = build(folder, SMALL, PLUGIN, device=gpu.device, made_by="tests", graphs=STEP)
    assert all(each.kept for each in again.built)


@pytest.mark.usefixtures("simulated")
def test_a_wrong_launch_does_not_pass_the_simulator(
    folder: ModelFolder, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What guards the test above: each of these would only show on a GPU, as garbage."""
    registered = simulated_plugin._PLUGINS["diffusion_rt::attention"]
    right = registered["aot_impl"]

    def wrong(change: Any) -> Any:
        return lambda *arguments: change(*right(*arguments))

    launch = simulated_plugin.KernelLaunchParams
    one = simulated_plugin.SymInt32(1)
    for change, said in (
        (lambda k, p, at, n: ("attention", p, at, n), "no kernel attention in its PTX"),
        (lambda k, p, at, n: (k, p, at, [*n, one]), "not inputs, integers, output"),
        (lambda k, p, at, n: (k, p, at, [1.5, *n[1:]]), "no SymInt32"),
        (lambda k, p, at, n: (k, p, launch(block_x=128, shared_mem=32768), n), "shared memory"),
        (lambda k, p, at, n: (k, p, launch(block_x=2048), n), "block.x=2048"),
    ):
        monkeypatch.setitem(registered, "aot_impl", wrong(change))
        with pytest.raises(Exception, match=said) as caught:
            build(
                folder, SMALL, PLUGIN, device=gpu.device, made_by="tests", force=True, graphs=STEP
            )
        assert not isinstance(caught.value, BadInput)


@pytest.mark.usefixtures("simulated")
def test_a_plugin_nobody_registered_is_refused_by_the_parser(
    folder: ModelFolder, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated_plugin, "_PLUGINS", {})
    with pytest.raises(Exception, match="Plugin not found"):
        build(folder, SMALL, PLUGIN, device=gpu.device, made_by="tests", force=True, graphs=STEP)
