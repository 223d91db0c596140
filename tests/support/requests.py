"""Requests of every kind that is valid, for hypothesis."""

from typing import Any

from hypothesis import strategies as st

from diffusion_rt.runtime.request import EMPHASES, RNGS, SIGMAS, SPACINGS, Request

AWKWARD = ["-", "---", "--steps", "-x y", "", " ", "'\"$`\\", "a\nb\tc", "\x1b[2J"]
AWKWARD += ["(a:1.2)", "é猫\u200d🎨", 'a, b: "c"']
TEXTS = st.one_of(st.sampled_from(AWKWARD), st.text(max_size=20)).filter(
    lambda text: "\0" not in text and text != "--"  # which argparse of Python 3.11 loses
)
SIDES = st.integers(1, 256).map(lambda n: 8 * n)
PAIRS = st.tuples(st.integers(1, 65536), st.integers(1, 65536))
LEVELS = st.lists(st.floats(0, 1e6), min_size=1, max_size=4).map(tuple)
SEED = st.integers(0, 2**64 - 1)


@st.composite
def requests(draw: st.DrawFn, /, **fixed: Any) -> Request:
    """A valid Request; `fixed` fields are as given."""
    fields: dict[str, Any] = {
        "prompt": draw(TEXTS),
        **draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "prompt_2": TEXTS,
                    "negative_prompt": TEXTS,
                    "negative_prompt_2": TEXTS,
                    "width": SIDES,
                    "height": SIDES,
                    "num_inference_steps": st.integers(1, 1000),
                    "guidance_scale": st.floats(0, 100),
                    "guidance_rescale": st.floats(0, 1),
                    "sampler": st.sampled_from(["euler", "dpm++-2m-sde", "no such sampler"]),
                    "spacing": st.sampled_from(SPACINGS),
                    "eta": st.floats(0, 1),
                    "seed": SEED,
                    "rng": st.sampled_from(RNGS),
                    "clip_skip": st.integers(0, 100),
                    "emphasis": st.sampled_from(EMPHASES),
                    "original_size": PAIRS,
                    "crops_coords_top_left": PAIRS,
                    "target_size": PAIRS,
                    "negative_original_size": PAIRS,
                    "negative_crops_coords_top_left": PAIRS,
                    "negative_target_size": PAIRS,
                },
            )
        ),
    }
    levels = draw(st.sampled_from(["none", "sigmas", "family", "timesteps"]))
    if levels == "family":
        fields["sigmas"] = draw(st.sampled_from(SIGMAS))
    elif levels != "none":
        fields[levels] = draw(LEVELS)
    if draw(st.booleans()):
        count = draw(st.integers(2, 3))
        fields["num_images_per_prompt"] = count
        if draw(st.booleans()):
            fields["seed"] = draw(st.tuples(*[SEED] * count))
    return Request(**fields | fixed)
