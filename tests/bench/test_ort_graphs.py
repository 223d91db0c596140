"""ONNX Runtime with arrays on its device, on the CPU: the same pictures however it is bound."""

import numpy as np
import pytest

from diffusion_rt.bench.ort_graphs import GraphBackend, GraphEngine, OrtGraphs
from diffusion_rt.bench.ours import Ours
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.runtime.pipeline import SHIPPED
from support.races import case


def test_the_same_pictures_as_ours() -> None:
    theirs, ours = (
        OrtGraphs(model=SHIPPED, threads=1, device="cpu"),
        Ours(model=SHIPPED, threads=1),
    )
    # Other sizes in between: places are kept for each, and what a request fixes is sent anew.
    for changes in ({}, {"width": 24}, {"seed": 6, "prompt": "a blue star"}, {"images": 2}):
        asked = case(**{"width": 16, "height": 16, "guidance_scale": 3.0, **changes})
        mine, found = (contender.run(asked).arrays for contender in (ours, theirs))
        for name, wanted in mine.items():
            np.testing.assert_allclose(
                found[name].astype(np.float64), wanted, atol=1 if name == "pixels" else 1e-4
            )
    assert theirs.run(case()).seconds["evaluation"]
    for contender in (theirs, ours):
        contender.close()


def test_places_stay_and_constants_are_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = GraphBackend(open_model(SHIPPED), 1, "cpu").load("unet_step")
    assert isinstance(engine, GraphEngine)
    sent: list[set[str]] = []
    send = engine._send

    def note(names: frozenset[str] | set[str]) -> None:
        sent.append(set(names))
        send(names)

    monkeypatch.setattr(engine, "_send", note)
    sizes = {"batch": 2, "tokens": 5, "height": 2, "width": 2}
    for _ in range(2):
        buffers = {
            name: np.zeros(spec.resolve(sizes), spec.dtype)
            for name, spec in {**engine.inputs, **engine.outputs}.items()
        }
        engine.bind(buffers)
        engine.enqueue()
        engine.enqueue()
    assert len(engine._places) == 1
    assert ["latent" in names for names in sent] == [False, True, True] * 2
    assert any(name.endswith("attn2.key") for name in sent[0])
    assert not any("attn2" in name for name in sent[1])
    engine.close()


def test_without_its_provider_it_says_so() -> None:
    with pytest.raises(BadInput, match="provider cuda: this onnxruntime has only"):
        OrtGraphs(model=SHIPPED, threads=1)
