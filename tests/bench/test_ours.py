"""Our own stages, by a clock that ticks."""

import itertools

from diffusion_rt.bench.ours import Ours
from support.exported import ExportedModel
from support.races import case


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
