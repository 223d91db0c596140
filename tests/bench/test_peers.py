"""diffusers beside us on one small model: the gate lets both pass, and nobody else."""

import pytest

from diffusion_rt.bench.case import Case
from diffusion_rt.bench.contender import Outcome
from diffusion_rt.bench.ours import Ours
from diffusion_rt.bench.peers import Diffusers
from diffusion_rt.bench.race import race
from diffusion_rt.bench.unet_alone import DiffusersUnet, OrtUnet, OurUnet
from diffusion_rt.engines.errors import BadInput
from support.exported import ExportedModel
from support.races import case


class AnotherSeed(Ours):
    """As fast as we are, and wrong where it draws one picture."""

    name = "planted"

    def run(self, case: Case) -> Outcome:
        seed = case.seed + 1 if case.images == 1 else case.seed
        return super().run(
            Case(**{name: getattr(case, name) for name in case.__slots__} | {"seed": seed})
        )


def test_the_gate_on_real_pictures(exported_model: ExportedModel) -> None:
    model = exported_model("plain")
    ours, planted = (kind(model=model, threads=1) for kind in (Ours, AnotherSeed))
    theirs = Diffusers(model=model, threads=1)
    for sampler, images in (("euler", 1), ("ddim", 2)):
        asked = case(sampler=sampler, images=images, width=64, height=48)
        contenders = (theirs, ours, planted)
        (lanes,) = race(contenders, [asked], reference=theirs, repeats=1, warm_up=0)
        wrong = [lane.wrong for lane in lanes]
        assert wrong[:2] == [None, None]
        assert (wrong[2] is not None) == (images == 1)
        for lane in lanes[:2]:
            assert len(lane.rounds[0]["evaluation"]) == 3
            assert len(lane.rounds[0]["step"]) == 2
            assert {"picture", "text", "own", "decode"} <= set(lane.measures)
            inside = sum(sum(lane.rounds[0][name]) for name in ("text", "evaluation", "decode"))
            assert inside < lane.rounds[0]["picture"][0]
    for contender in (theirs, ours, planted):
        contender.close()


def test_a_sampler_that_diffusers_lacks_is_bad_input(
    exported_model: ExportedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = Diffusers(model=exported_model("plain"), threads=1)
    with pytest.raises(BadInput):
        theirs.run(case(sampler="no such sampler"))


@pytest.mark.parametrize(("scale", "images"), [(1.0, 1), (5.0, 2)])
def test_the_unet_alone(exported_model: ExportedModel, scale: float, images: int) -> None:
    model = exported_model("plain")
    ours, plain = (kind(model=model, threads=1) for kind in (OurUnet, OrtUnet))
    theirs = DiffusersUnet(model=model, threads=1)
    for width in (64, 72):
        asked = case(width=width, height=40, guidance_scale=scale, images=images)
        contenders = (ours, plain, theirs)
        (lanes,) = race(contenders, [asked], reference=theirs, repeats=2, warm_up=0)
        assert [lane.wrong for lane in lanes] == [None] * 3
        assert all(lane.measures == ["evaluation"] for lane in lanes)
    for contender in contenders:
        contender.close()


def test_a_vae_that_overflows_in_float16_is_decoded_in_bfloat16(
    exported_model: ExportedModel,
) -> None:
    theirs = Diffusers(model=exported_model("plain"), threads=1, dtype="float16")
    vae = theirs._pipeline.vae
    assert (str(vae.dtype), vae.config.force_upcast) == ("torch.bfloat16", True)
    found = theirs.run(case(width=64, height=48)).arrays
    assert str(vae.dtype) == "torch.bfloat16", "not brought to float32 for a picture"
    assert found["pixels"].std() > 1
    theirs.close()
