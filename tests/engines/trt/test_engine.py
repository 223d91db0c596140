"""The whole path on the simulated TensorRT (`-m trt`: on the real one): build, load, run, draw."""

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diffusion_rt.__main__ import main
from diffusion_rt.engines import choose
from diffusion_rt.engines.cache_folder import cache_folder
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.protocol import AT_ONCE
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.ort.backend import OrtBackend
from diffusion_rt.engines.protocol import Evaluations
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.engines.trt import backend
from diffusion_rt.engines.trt.backend import open_trt
from diffusion_rt.engines.trt.build import build
from diffusion_rt.engines.trt.options import Options
from diffusion_rt.engines.trt.plan_file import open_plan, read_header, write_plan
from diffusion_rt.runtime.decode import Decoder
from diffusion_rt.runtime.pipeline import Pipeline
from support.tensorrt_bench import (
    COVERAGE,
    PROMPT,
    SIZES,
    Kind,
    copied,
    drawn,
    one_evaluation,
    plan_of,
    random_inputs,
    refusal,
)

# How far apart arrays may be, as a share of the largest number. The simulated TensorRT computes by
# ONNX Runtime, and the loop on the device as NumPy's does: it is the same to the bit, but for the
# deviations that a rescale divides by: each sums them in an order of its own. Latents were 2.7e-7
# apart then. No GPU has run this yet: the bound for a real one is a guess.
CLOSE = {"simulated": 0.0, "real": 2e-3}
RESCALED = {"simulated": 1e-6, "real": 2e-3}


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_gives_what_onnx_runtime_gives(
    model: ModelFolder, gpu: Gpu, kind: Kind, graph: str
) -> None:
    host = OrtBackend(model, threads=1).load(graph)
    engine = open_trt(model, gpu).load(graph)
    inputs = random_inputs(host, SIZES[graph])
    answers = []
    for each in (host, engine):
        outputs = {}
        for name, spec in each.outputs.items():
            outputs[name] = np.full(spec.resolve(SIZES[graph]), np.nan, spec.dtype)
        each.bind(inputs | outputs)
        each.enqueue()
        answers.append(outputs)
    engine.close()
    for name, wanted in answers[0].items():
        scale = np.abs(wanted).max()
        assert np.abs(answers[1][name] - wanted).max() <= CLOSE[kind] * scale, name


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "euler"},
        {"sampler": "dpmpp-2m", "num_images_per_prompt": 3},
        {"sampler": "euler-a", "width": 96, "height": 160, "num_images_per_prompt": 5},
        {"sampler": "unipc", "guidance_scale": 1.0},
        {"sampler": "ddim", "guidance_rescale": 0.7, "negative_prompt": "a star " * 20},
    ],
    ids=lambda settings: settings["sampler"],
)
def test_pictures_are_those_of_onnx_runtime(
    pipelines: tuple[Pipeline, Pipeline], kind: Kind, settings: dict[str, Any]
) -> None:
    (wanted, pictures), (latents, found) = (drawn(pipeline, **settings) for pipeline in pipelines)
    close = RESCALED if settings.get("guidance_rescale") else CLOSE
    assert np.abs(latents - wanted).max() <= close[kind] * np.abs(wanted).max()
    assert pictures.std() > 10, "a flat picture proves nothing"
    check_pixels(found, pictures, close[kind])


def check_pixels(found: NDArray[Any], wanted: NDArray[Any], close: float) -> None:
    """Equal where latents are; else apart by one, and in the simulator hardly any."""
    apart = np.abs(found.astype(int) - wanted)
    assert apart.max() <= (1 if close else 0)
    if close == RESCALED["simulated"]:
        assert (apart > 0).mean() < 1e-4


@pytest.mark.parametrize("shape", [(16, 16), (20, 12)])
def test_pixels_are_those_that_the_host_makes(
    model: ModelFolder, gpu: Gpu, shape: tuple[int, int]
) -> None:
    opened, vae = open_trt(model, gpu), model.manifest.vae
    plain = Decoder(lambda _: opened.load("vae_decoder"), vae)
    device = Decoder(lambda _: opened.load("vae_decoder"), vae, device=opened.decoder())
    for seed in range(3):  # run, captured, replayed
        latent = 2 * np.random.default_rng(seed).standard_normal((4, *shape), np.float32)
        wanted = plain.decode(latent, None)
        assert wanted.std() > 10
        np.testing.assert_array_equal(device.decode(latent, None), wanted)
    with pytest.raises(BadInput, match="nearest of these is"):
        device.decode(latent[:, :11], None)
    plain.close()
    device.close()


def test_arrays_that_are_not_what_the_engine_writes(model: ModelFolder, gpu: Gpu) -> None:
    """As of a manifest with another factor of the VAE: too small an array would be overrun."""
    engine = open_trt(model, gpu).load("vae_decoder")
    inputs = random_inputs(engine, SIZES["vae_decoder"])
    for shape in ((1, 3, 112, 112), (1, 3, 128, 256), (1, 3, 128, 128)):
        outputs = {"image": np.full(shape, np.nan, np.float32)}
        if shape == (1, 3, 128, 128):
            engine.bind(inputs | outputs)
            engine.enqueue()
            assert np.isfinite(outputs["image"]).all()
        else:
            with pytest.raises(BadInput, match=r"image: got .* writes \[1, 3, 128, 128\]"):
                engine.bind(inputs | outputs)
    engine.close()


def test_damaged_plans_are_never_shown_to_tensorrt(
    model: ModelFolder, gpu: Gpu, tmp_path: Path
) -> None:
    damaged = copied(tmp_path / "m", model)
    plan = plan_of(damaged)
    whole = plan.read_bytes()
    for place in (20, 60, len(whole) // 2, len(whole) - 1):
        content = bytearray(whole)
        content[place] ^= 1
        plan.write_bytes(content)
        assert "build it again" in refusal(damaged, gpu)
    plan.write_bytes(whole[: len(whole) // 2])
    assert "build it again" in refusal(damaged, gpu)
    plan.unlink()
    assert "unet_step: no TensorRT plan for this GPU; build it: diffusion-rt build " in refusal(
        damaged, gpu
    )


def test_plans_of_another_machine_or_model(model: ModelFolder, gpu: Gpu, tmp_path: Path) -> None:
    other = copied(tmp_path / "m", model)
    plan = plan_of(other)
    header = read_header(plan.parent, "unet_step")
    assert header is not None
    with open_plan(plan.parent, "unet_step") as opened:
        data = bytes(opened.data)
    machine = header.key.machine
    for changes, words in (
        ({"machine": replace(machine, arch=80)}, "this GPU is"),
        ({"machine": replace(machine, tensorrt="11.0.0.1")}, "for TensorRT 11.0.0.1, installed is"),
        ({"machine": replace(machine, driver="99.0")}, "for a driver of CUDA 99.0 or newer"),
        ({"onnx": "0" * 64}, "was built from another unet_step.float32.onnx than the model has"),
        ({"weights": dict.fromkeys(header.key.weights, "0" * 64)}, "was built for another"),
    ):
        write_plan(plan.parent, replace(header, key=replace(header.key, **changes)), data)
        said = refusal(other, gpu)
        assert words in said
        assert f"diffusion-rt build {other.path} --engine trt" in said
    # A plan that TensorRT itself does not take, whatever its header says.
    nonsense = b"nonsense" * 100
    digest = hashlib.sha256(nonsense).hexdigest()
    foreign = replace(header, plan_bytes=len(nonsense), plan_sha256=digest)
    write_plan(plan.parent, foreign, nonsense)
    assert "TensorRT does not load it" in refusal(other, gpu)


def test_half_precision_and_a_vae_in_bfloat16(
    model: ModelFolder, gpu: Gpu, tmp_path: Path, pipelines: tuple[Pipeline, Pipeline]
) -> None:
    half = copied(tmp_path / "m", model)
    build(half, COVERAGE, Options(), device=gpu.device, made_by="tests")
    wanted, pictures = drawn(pipelines[0])
    opened = open_trt(half, gpu)
    with Pipeline(half, opened) as pipeline:
        latents, found = drawn(pipeline)
    assert np.abs(latents - wanted).max() < 0.05 * np.abs(wanted).max()
    assert np.abs(found.astype(int) - pictures).mean() < 2
    with pytest.raises(BadInput, match="computes in bfloat16, float32 is wanted; build it again"):
        opened.load("vae_decoder", "float32")
    with pytest.raises(BadInput, match="--precision float32"):
        open_trt(half, gpu, precision="float32")


def test_the_loop_gives_the_timesteps_no_more_rows_than_are_built_for(
    model: ModelFolder, gpu: Gpu
) -> None:
    """The most images there are engines for, in more evaluations than one run has."""
    count, images = AT_ONCE + 1, COVERAGE.batch.max
    request = one_evaluation()
    request["evaluations"] = Evaluations(
        timesteps=np.linspace(999, 0, count, dtype=np.float32),
        c_in=np.ones(count, np.float32),
        weights=np.full((count, 1, 3), [1.0, -0.001, 0.0]),
        draws=np.zeros(count, np.bool_),
    )
    request["start"] = np.zeros((images, 4, 16, 16), np.float32)
    denoiser = open_trt(model, gpu).denoiser()
    assert denoiser(**request).shape == (images, 4, 16, 16)
    denoiser.close()


def lend(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let whoever opens the GPU have this one, and close it in name only; what was done with it."""
    done: list[str] = []

    def open_gpu() -> Gpu:
        done.append("opened")
        return gpu

    monkeypatch.setattr(backend, "open_gpu", open_gpu)
    monkeypatch.setattr(gpu, "close", lambda: done.append("closed"))
    return done


def test_a_pipeline_gives_back_the_gpu_that_it_opened(
    model: ModelFolder, gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "_DRIVER", (tmp_path,))
    done = lend(gpu, monkeypatch)
    with Pipeline.open(model.path, engine="trt") as pipeline:
        drawn(pipeline, num_inference_steps=1)
        pipeline.close()
        drawn(pipeline, num_inference_steps=1)
        assert done == ["opened"]
    assert done == ["opened", "closed"]
    with pytest.raises(BadInput, match="ended with its `with` block; open it again"):
        drawn(pipeline)
    other = copied(tmp_path / "m", model)
    plan_of(other).unlink()
    with pytest.raises(BadInput, match="no TensorRT plan"):
        open_trt(other)
    assert done == ["opened", "closed"] * 2


def test_engines_that_somebody_else_built_run_once_they_are_trusted(
    model: ModelFolder, gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """As in a container whose cache folder is new at every start."""
    monkeypatch.setattr(choose, "_DRIVER", (tmp_path,))
    lend(gpu, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = {path: path.read_bytes() for path in model.path.glob("engines/trt/*/*")}
    command = ["generate", PROMPT, "--model", str(model.path), "--steps", "1"]
    command += ["--output", str(tmp_path / "a.png"), "--overwrite"]
    assert main([*command, "--engine", "trt"]) == 2
    said = capfd.readouterr().err
    assert "built by somebody else" in said
    assert "--trust" in said
    with pytest.raises(BadInput, match=r"was not built by you here.*--trust"):
        open_trt(model, gpu)
    assert main([*command, "--engine", "ort", "--trust"]) == 2
    assert "trust is for engines that TensorRT built" in capfd.readouterr().err
    assert not (tmp_path / "a.png").exists()
    for more in (["--engine", "trt", "--trust"], ["--engine", "trt"], []):
        assert main([*command, *more]) == 0
        assert "engine trt on cuda" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_which_of_several_plans_runs(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model's folder could not be written, what was built is in the cache."""
    from diffusion_rt.engines.trt.graphs import find_plans

    other = copied(tmp_path / "m", model)
    own = plan_of(other).parent
    header = read_header(own, "unet_step")
    assert header is not None
    cached = cache_folder("trt") / other.sha256[:32] / own.name
    shutil.copytree(own, cached)
    for folder, when in ((own, 10), (cached, 20)):
        for path in folder.iterdir():
            os.utime(path, (when, when))
    machine = header.key.machine

    def folders() -> dict[str, Path]:
        return {graph: folder for graph, (folder, _) in find_plans(other, machine).items()}

    assert set(folders().values()) == {cached}
    os.utime(plan_of(other), (30, 30))
    assert folders() == dict.fromkeys(GRAPHS, cached) | {"unet_step": own}
    with monkeypatch.context() as theirs:
        theirs.setenv("XDG_CACHE_HOME", str(tmp_path / "theirs"))
        evil = hashlib.sha256(b"evil").hexdigest()
        write_plan(own, replace(header, plan_bytes=4, plan_sha256=evil), b"evil")
    assert set(folders().values()) == {cached}
    # Of another kind all are taken, or none: a build may have been interrupted.
    shutil.copytree(cached, own.parent / "ampere+")
    assert set(folders().values()) == {cached}
    (cached / "unet_timestep.plan").unlink()
    (own / "unet_timestep.plan").unlink()
    assert set(folders().values()) == {own.parent / "ampere+"}


def test_the_command_line(
    model: ModelFolder,
    gpu: Gpu,
    kind: Kind,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    monkeypatch.setattr(choose, "_DRIVER", (tmp_path,))
    lend(gpu, monkeypatch)
    command = ["generate", PROMPT, "--model", str(model.path), "--steps", "4", "--seed", "3"]
    pictures = []
    for engine in ("ort", "trt", "auto"):
        file = tmp_path / f"{engine}.png"
        assert main([*command, "--engine", engine, "--output", str(file)]) == 0
        assert (
            f"engine {'ort on cpu' if engine == 'ort' else 'trt on cuda'}" in capfd.readouterr().err
        )
        pictures.append(np.asarray(Image.open(file)).astype(int))
    check_pixels(pictures[1], pictures[0], CLOSE[kind])
    np.testing.assert_array_equal(pictures[1], pictures[2])
    size = ["--width", "136", "--output", str(tmp_path / "no.png")]
    assert main([*command, "--engine", "trt", *size]) == 2
    assert "the nearest of these is 128x128" in capfd.readouterr().err
    assert not (tmp_path / "no.png").exists()
