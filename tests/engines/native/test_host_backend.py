"""The native engine on the host: an engine like every other, and a whole picture by it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native.host import laid_out
from diffusion_rt.engines.native.host_backend import HostBackend, HostWeights
from diffusion_rt.engines.native.lower import plan_of
from diffusion_rt.engines.native.plan import Layout, Weight
from diffusion_rt.engines.onnx_file import ExternalTensor
from diffusion_rt.engines.protocol import Engine
from diffusion_rt.runtime.pipeline import SHIPPED, Pipeline
from diffusion_rt.runtime.request import Request
from support.native_plans import Arrays, draw_inputs


@pytest.fixture(scope="module")
def model() -> ModelFolder:
    return open_model(SHIPPED)


@pytest.fixture
def engine(model: ModelFolder) -> Iterator[Engine]:
    engine = HostBackend(model).load("unet_timestep")
    yield engine
    engine.close()


def buffers(engine: Engine, rows: int, seed: int = 0) -> Arrays:
    sizes = {"n": rows}
    given = draw_inputs(list(engine.inputs.values()), sizes, 600, seed)
    made = {
        name: np.full(spec.resolve(sizes), np.nan, spec.dtype)
        for name, spec in engine.outputs.items()
    }
    return {**given, **made}


def test_it_reads_and_writes_the_bound_arrays(engine: Engine) -> None:
    bound = buffers(engine, 3)
    engine.bind(bound)
    engine.enqueue()
    name = next(iter(engine.outputs))
    first = bound[name].copy()
    assert np.isfinite(first).all()
    bound["timestep"][:] += 100
    engine.enqueue()
    assert not np.array_equal(bound[name], first)
    bound["timestep"][:] -= 100
    other = buffers(engine, 5, seed=1)
    engine.bind(other)  # another size, and what was bound is left alone
    engine.enqueue()
    assert np.isfinite(other[name]).all()
    engine.bind(bound)
    engine.enqueue()
    assert np.allclose(bound[name], first, atol=1e-5)


def test_what_it_refuses(engine: Engine) -> None:
    with pytest.raises(BadInput, match="no arrays are bound"):
        engine.enqueue()
    bound = buffers(engine, 3)
    with pytest.raises(BadInput, match="unet_timestep: timestep: got float64"):
        engine.bind({**bound, "timestep": bound["timestep"].astype(np.float64)})
    name = next(iter(engine.outputs))
    with pytest.raises(BadInput, match=f"unet_timestep: {name}: got shape"):
        engine.bind({**bound, name: np.zeros((4, *bound[name].shape[1:]), np.float32)})
    engine.bind(bound)
    with pytest.raises(BadInput, match="has no streams"):
        engine.enqueue(7)
    engine.close()
    engine.close()
    with pytest.raises(BadInput, match="is closed"):
        engine.bind(bound)
    with pytest.raises(BadInput, match="no arrays are bound"):
        engine.enqueue()


def test_a_picture_whose_size_a_decoder_cannot_make(model: ModelFolder) -> None:
    """Eight pixels for each latent, no other number."""
    engine = HostBackend(model).load("vae_decoder")
    latent = np.zeros((1, 4, 4, 4), np.float32)
    with pytest.raises(
        BadInput, match=r"image: got shape \[1, 3, 33, 32\], wants \[1, 3, 32, 32\]"
    ):
        engine.bind({"latent": latent, "image": np.zeros((1, 3, 33, 32), np.float32)})


def test_a_size_that_the_vae_cannot_halve_is_refused(model: ModelFolder) -> None:
    with pytest.raises(BadInput, match="is the size one that 8 divides"):
        plan_of(model, "vae_encoder", {"batch": 1, "height": 60, "width": 64, "latent_height": 8})


def test_weights_that_are_not_finite_are_named(tmp_path: Path, model: ModelFolder) -> None:
    values = np.ones((8, 8), np.float32)
    for wrong in (np.nan, np.inf, 1e6):  # the last is infinite in float16
        values[3, 4] = wrong
        (tmp_path / "w.safetensors").write_bytes(values.tobytes())
        source = ExternalTensor("unet.w", "float32", (8, 8), "w.safetensors", 0, values.nbytes)
        weight = Weight("unet.w", (source,), "rows", "float16", (8, 8))
        folder = ModelFolder(tmp_path, model.manifest, model.sha256)
        plan = plan_of(model, "unet_timestep", {"n": 1})
        with pytest.raises(BadInput, match=r"w\.safetensors: unet\.w has numbers .* in float16"):
            HostWeights(folder).of(plan, weight)


@pytest.mark.parametrize(
    ("layout", "stored", "shape"),
    [
        ("rows", [(4, 3), (2, 3)], (6, 3)),
        ("rows", [(4,)], (8,)),
        ("transposed", [(3, 5)], (5, 3)),
        ("filters", [(5, 3, 2, 2)], (8, 2, 2, 8)),
        ("geglu", [(32, 3)], (32, 3)),
        ("geglu", [(32,)], (32,)),
    ],
)
def test_layouts(layout: Layout, stored: list[tuple[int, ...]], shape: tuple[int, ...]) -> None:
    """Element by element, as `plan.Weight` says it."""
    arrays = [np.random.default_rng(i).standard_normal(s) for i, s in enumerate(stored)]
    sources = tuple(ExternalTensor("w", "float64", s, "f", 0, 0) for s in stored)
    made = laid_out(Weight("w", sources, layout, "float32", shape), arrays)
    assert made.shape == shape
    assert made.dtype == np.float32
    whole = np.concatenate(arrays)
    filled = 0
    for place in np.ndindex(shape):
        if layout == "filters":
            n, y, x, c = place
            inside, truth = n < 5 and c < 3, (n, c, y, x)
        elif layout == "geglu":
            block, row = divmod(place[0], 16)
            half, number = divmod(row, 8)
            inside, truth = True, (half * 16 + block * 8 + number, *place[1:])
        else:
            truth = place[::-1] if layout == "transposed" else place
            inside = place[0] < len(whole) or layout == "transposed"
        assert made[place] == (np.float32(whole[truth]) if inside else 0)
        filled += inside
    assert filled == whole.size


def test_a_weight_that_its_sources_do_not_make_up() -> None:
    source = ExternalTensor("w", "float32", (4, 3), "f", 0, 48)
    with pytest.raises(BadInput, match=r"weight w: \[4, 3\] as rows is not \[3, 3\]"):
        laid_out(Weight("w", (source,), "rows", "float32", (3, 3)), [np.zeros((4, 3))])


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_picture_is_that_of_onnx_runtime(guidance: float) -> None:
    request = Request(
        prompt="a large red circle above a small blue square on a green background",
        width=136,
        height=72,
        num_inference_steps=4,
        guidance_scale=guidance,
        num_images_per_prompt=2,
        seed=11,
    )
    drawn = []
    for options in ({"engine": "ort"}, {"engine": "native", "provider": "host"}):
        with Pipeline.open(SHIPPED, threads=1, **options) as pipeline:  # type: ignore[arg-type]
            drawn.append([np.asarray(image) for image in pipeline.generate(request).images])
    theirs, ours = np.stack(drawn[0]).astype(int), np.stack(drawn[1]).astype(int)
    assert theirs.std() > 10, "a flat picture proves nothing"
    assert np.abs(ours - theirs).max() <= 1
