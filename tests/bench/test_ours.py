"""Our own stages, by a clock that ticks."""

import itertools

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.bench.contender import Watch
from diffusion_rt.bench.ours import Ours, TimedBackend
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.engines.null import NullBackend
from diffusion_rt.engines.protocol import PixelDecoder
from diffusion_rt.engines.spec import Precision
from diffusion_rt.runtime.pipeline import SHIPPED
from support.exported import ExportedModel
from support.races import case, ticking


def test_stages_of_the_null_engine(exported_model: ExportedModel) -> None:
    clock = itertools.count().__next__
    ours = Ours(model=exported_model("plain"), threads=1, engine="null", clock=clock)
    for images in (1, 2):
        outcome = ours.run(case(steps=4, images=images))
        assert outcome.arrays["pixels"].shape == (images, 16, 16, 3)
        assert outcome.arrays["latents"].shape == (images, 4, 2, 2)
        found = outcome.seconds
        assert list(found) == [
            *("picture", "text", "prompt", "timestep", "step", "evaluation", "own", "decode")
        ]
        # The clock ticks at each look: two looks a run, and one at the end of each step.
        assert found["text"] == [2]
        assert found["prompt"] == found["timestep"] == [1]
        assert found["evaluation"] == [1] * 4
        assert found["step"] == [3] * 3
        assert found["own"] == [2] * 3
        assert found["decode"] == [images]
    peak = ours.peak_rss()
    assert peak is None or peak > 1 << 20
    ours.close()


class Grey:
    """A decoder on a device."""

    open = True

    def prepare(
        self, latent: tuple[int, ...], pixels: tuple[int, ...], precision: Precision | None = None
    ) -> None: ...

    def __call__(
        self,
        latent: NDArray[np.float32],
        pixels: NDArray[np.uint8],
        precision: Precision | None = None,
    ) -> bool:
        pixels.fill(128)
        return precision == "float32"

    def close(self) -> None:
        self.open = False


def test_pixels_of_a_device_are_laps_of_the_decoder() -> None:
    grey = Grey()

    class OnDevice(NullBackend):
        def decoder(self) -> PixelDecoder:  # type: ignore[override]
            return grey

    folder = open_model(SHIPPED)
    backend = TimedBackend(OnDevice(folder))
    backend.watch = Watch(ticking(0, 3, 10, 12))
    decoder = backend.decoder()
    assert decoder is not None
    latent, pixels = np.zeros((1, 4, 1, 1), np.float32), np.zeros((1, 8, 8, 3), np.uint8)
    assert not decoder(latent, pixels)
    assert decoder(latent, pixels, "float32")
    assert (pixels == 128).all()
    assert backend.watch.result() == {"decode": [3 + 2]}
    decoder.close()
    assert not grey.open
    assert TimedBackend(NullBackend(folder)).decoder() is None
