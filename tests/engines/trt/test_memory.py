"""Device memory of TensorRT engines: what is taken, what is told where there is too little."""

from typing import Any

import numpy as np
import pytest

from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.errors import Fault, OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.trt.backend import open_trt
from diffusion_rt.runtime.decode import Decoder
from diffusion_rt.runtime.pipeline import Pipeline
from support.simulated_tensorrt import IExecutionContext
from support.tensorrt_bench import (
    drawn,
    one_evaluation,
)


@pytest.mark.usefixtures("simulated")
def test_scratch_that_tensorrt_does_not_tell(
    model: ModelFolder,
    gpu: Gpu,
    pipelines: tuple[Pipeline, Pipeline],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """0 is how it says that it failed: what the profile needs is taken, or the failure told."""
    wanted, _ = drawn(pipelines[1])
    monkeypatch.setattr(IExecutionContext, "update_device_memory_size_for_shapes", lambda self: 0)
    with Pipeline(model, open_trt(model, gpu)) as pipeline:
        found, _ = drawn(pipeline)
    np.testing.assert_array_equal(found, wanted)

    def failing(self: Any) -> int:
        self._refuse("the shapes could not be resolved")
        return 0

    monkeypatch.setattr(IExecutionContext, "update_device_memory_size_for_shapes", failing)
    with (
        Pipeline(model, open_trt(model, gpu)) as pipeline,
        pytest.raises(Fault, match="does not say what it needs: the shapes could not be resolved"),
    ):
        drawn(pipeline)


@pytest.mark.usefixtures("simulated")
def test_all_memory_is_given_back(model: ModelFolder, gpu: Gpu) -> None:
    before = gpu.device.memory().free
    with Pipeline(model, open_trt(model, gpu)) as pipeline:
        drawn(pipeline)
        first = gpu.device.memory().free
        drawn(pipeline, num_images_per_prompt=2)
        drawn(pipeline)
        pipeline.close()
        assert gpu.device.memory().free == before
        drawn(pipeline)
        assert gpu.device.memory().free == first
    assert gpu.device.memory().free == before


@pytest.mark.usefixtures("simulated")
def test_too_little_memory(model: ModelFolder, gpu: Gpu) -> None:
    with Pipeline(model, open_trt(model, gpu)) as pipeline:
        wanted, _ = drawn(pipeline)
        taken = gpu.device.allocate(gpu.device.memory().free - (200 << 10))
        # Another size takes the place of the one before; too many pictures are drawn in turn.
        assert drawn(pipeline, width=96, height=160)[0].shape == (1, 4, 20, 12)
        assert drawn(pipeline, num_images_per_prompt=3)[0].shape == (3, 4, 16, 16)
        taken.close()
        found, _ = drawn(pipeline)
        np.testing.assert_array_equal(found, wanted)
    denoiser = open_trt(model, gpu).denoiser()
    taken = gpu.device.allocate(gpu.device.memory().free - (200 << 10))
    with pytest.raises(OutOfMemory) as caught:
        denoiser(**one_evaluation())
    for words in ("needed", "free", "fewer images", "smaller size", "nvidia-smi"):
        assert words in str(caught.value)
    taken.close()
    assert denoiser(**one_evaluation()).shape == (1, 4, 16, 16)
    denoiser.close()


@pytest.mark.usefixtures("simulated")
def test_a_decoder_without_memory_says_so_and_decodes_once_there_is_some(
    model: ModelFolder, gpu: Gpu
) -> None:
    """Half of a size is none that was built: tiles are no way out, nor the thing to tell of."""
    backend = open_trt(model, gpu)
    decoder = Decoder(lambda guarded: backend.load("vae_decoder"), model.manifest.vae)
    latent = np.random.default_rng(0).standard_normal((4, 20, 12), np.float32)
    wanted = decoder.decode(latent, None)
    decoder.close()
    taken = gpu.device.allocate(gpu.device.memory().free - (64 << 10))
    for _ in range(2):
        with pytest.raises(OutOfMemory, match=r"vae_decoder.* is needed, .* --engine ort"):
            decoder.decode(latent, None)
    taken.close()
    np.testing.assert_array_equal(decoder.decode(latent, None), wanted)
    assert decoder.tile is None
    decoder.close()
