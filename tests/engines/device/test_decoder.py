"""Latents to pixels on a simulated device: the bytes that the host makes of the same picture."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.device.decoder import KEPT, DeviceDecoder
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.errors import BadInput, OutOfMemory
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.engines.ort.backend import OrtBackend
from diffusion_rt.engines.protocol import Buffers, Engine
from diffusion_rt.engines.spec import Dtype, Precision, TensorSpec
from diffusion_rt.runtime.decode import to_pixels
from diffusion_rt.runtime.pipeline import SHIPPED
from support.device_graphs import HostGraphs, simulated_gpu
from support.fake_engine import FakeEngine

Array = NDArray[Any]
FACTOR = 3


def enlarge(inputs: Buffers) -> dict[str, Array]:
    """Each latent pixel's first three channels as 3x3 pixels."""
    return {"image": inputs["latent"][:, :3].repeat(FACTOR, axis=2).repeat(FACTOR, axis=3)}


class OneDecoder:
    """A backend of a decoder alone, which notes the precisions that it is asked for."""

    name = "one"

    def __init__(
        self,
        compute: Callable[[Buffers], dict[str, Array]] = enlarge,
        dtype: Dtype = "float32",
        output: str = "image",
    ) -> None:
        self.compute, self.dtype, self.output = compute, dtype, output
        self.asked: list[Precision | None] = []

    def load(self, graph: str, precision: Precision | None = None) -> Engine:
        assert graph == "vae_decoder"
        self.asked.append(precision)
        return FakeEngine(
            [TensorSpec("latent", self.dtype, ("batch", 4, "height", "width"))],
            [TensorSpec(self.output, self.dtype, ("batch", 3, "rows", "columns"))],
            self.compute,
        )

    def check(self, graph: str, sizes: Mapping[str, int]) -> None: ...

    def denoiser(self) -> None: ...

    def decoder(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(params=[None, 3], ids=["late", "drifting"])
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    made = simulated_gpu(seed=request.param, memory_bytes=1 << 19)
    yield made
    free = made.device.memory()
    assert free.free == free.total
    made.close()


def latents(height: int, width: int, images: int = 1) -> NDArray[np.float32]:
    rng = np.random.default_rng(height * width)
    return rng.normal(0, 0.7, (images, 4, height, width)).astype(np.float16).astype(np.float32)


def decoded(
    decoder: DeviceDecoder,
    z: NDArray[np.float32],
    precision: Precision | None = None,
    factor: int = FACTOR,
) -> NDArray[np.uint8] | None:
    """The pixels; None where the decoder says that a number was not finite."""
    images, _, height, width = z.shape
    pixels = np.full((images, height * factor, width * factor, 3), 7, np.uint8)
    return pixels if decoder(z, pixels, precision) else None


def check(decoder: DeviceDecoder, z: NDArray[np.float32]) -> None:
    wanted = to_pixels(enlarge({"latent": z})["image"])
    assert wanted is not None
    found = decoded(decoder, z)
    assert found is not None
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_sizes_and_types(gpu: Gpu, dtype: Dtype) -> None:
    graphs = HostGraphs(OneDecoder(dtype=dtype), gpu)
    decoder = DeviceDecoder(graphs, gpu)
    for height, width, images in ((1, 1, 1), (7, 5, 2), (8, 16, 1), (1, 1, 1)):
        check(decoder, latents(height, width, images))
    assert len(graphs.binds) == 3
    decoder.close()
    check(decoder, latents(7, 5))  # everything is taken again
    decoder.close()
    decoder.close()


def test_a_size_that_comes_again_is_captured_and_four_are_kept(gpu: Gpu) -> None:
    graphs = HostGraphs(OneDecoder(), gpu)
    decoder = DeviceDecoder(graphs, gpu)
    for enqueued in (1, 2, 2):
        check(decoder, latents(3, 4))
        assert len(graphs.enqueued) == enqueued
    graphs.generation += 1  # memory has moved
    for _ in range(2):
        check(decoder, latents(3, 4))
        assert len(graphs.enqueued) == 4
    for width in (5, 6, 7, 8):
        check(decoder, latents(3, width))
    assert sum(not engine.closed for engine in graphs.engines) == KEPT
    decoder.close()


def test_numbers_that_are_not_finite_are_told_each_time_and_only_then(gpu: Gpu) -> None:
    decoder = DeviceDecoder(HostGraphs(OneDecoder(), gpu), gpu)
    good, bad = latents(5, 7), latents(5, 7)
    bad[0, 2, 4, 6] = np.nan
    for _ in range(2):  # run, captured, replayed
        assert decoded(decoder, bad) is None
        check(decoder, good)
    decoder.close()


def test_a_precision_has_engines_of_its_own(gpu: Gpu) -> None:
    backend = OneDecoder()
    decoder = DeviceDecoder(HostGraphs(backend, gpu), gpu)
    for precision in (None, "float32", None, "float32"):
        assert decoded(decoder, latents(2, 2), precision) is not None
    assert backend.asked == [None, "float32"]
    decoder.close()


def test_too_little_memory(gpu: Gpu) -> None:
    graphs = HostGraphs(OneDecoder(), gpu)
    decoder = DeviceDecoder(graphs, gpu)
    check(decoder, latents(40, 50))
    check(decoder, latents(45, 50))  # in the memory of the first
    assert sum(not engine.closed for engine in graphs.engines) == 1
    with pytest.raises(OutOfMemory) as caught:
        decoded(decoder, latents(90, 80))
    for words in ("vae_decoder: 0.00", "needed", "free", "nvidia-smi", "smaller size"):
        assert words in str(caught.value)
    assert all(engine.closed for engine in graphs.engines)
    check(decoder, latents(40, 50))
    decoder.close()


def test_a_graph_that_is_no_decoder(gpu: Gpu) -> None:
    graphs = HostGraphs(OneDecoder(output="sample"), gpu)
    decoder = DeviceDecoder(graphs, gpu)
    with pytest.raises(BadInput, match="vae_decoder has latent, sample, not latent and image"):
        decoded(decoder, latents(2, 2))
    assert all(engine.closed for engine in graphs.engines)
    decoder.close()


def test_whole_pictures_of_the_shipped_model() -> None:
    folder = open_model(SHIPPED)
    backend, gpu = OrtBackend(folder, threads=1), simulated_gpu()
    decoder = DeviceDecoder(HostGraphs(backend, gpu), gpu)
    engine, factor = backend.load("vae_decoder"), folder.manifest.vae.factor
    for z in (latents(16, 16), latents(9, 13), latents(16, 16)):
        z *= 12
        image = np.zeros((1, 3, z.shape[2] * factor, z.shape[3] * factor), np.float32)
        engine.bind({"latent": z, "image": image})
        engine.enqueue()
        wanted, found = to_pixels(image), decoded(decoder, z, factor=factor)
        assert wanted is not None
        assert found is not None
        assert wanted.std() > 20
        np.testing.assert_array_equal(found, wanted)
    decoder.close()
    gpu.close()
