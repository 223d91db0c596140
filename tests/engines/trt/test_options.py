"""Options: none can exist that cannot be built."""

from typing import Any

import pytest

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.engines.trt.options import BuilderOptions, Edits, Options
from diffusion_rt.engines.typed_json import decode, encode


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"optimization_level": 6}, "optimization level 6, wants 0 to 5"),
        ({"optimization_level": -1}, "wants 0 to 5"),
        ({"optimization_level": True}, "wants 0 to 5"),
        ({"workspace_bytes": 1000}, "workspace 1000, wants 1048576"),
        ({"auxiliary_streams": 17}, "auxiliary streams 17"),
        ({"profile_memory": 1.5}, "memory of each profile 1.5, wants a share from 0.0 to 1.0"),
        ({"profile_memory": float("nan")}, "wants a share from 0.0 to 1.0"),
        ({"tiling": "most"}, 'tiling "most", wants one of none, fast'),
        ({"compatibility": "turing+"}, "wants one of none, same, ampere+"),
        ({"build_route": "rm -rf /"}, "wants knobs such as"),
        ({"build_route": "-a=1\n-b=2"}, "wants knobs such as"),
        ({"build_route": "-a=1 " * 500}, "wants knobs such as"),
    ],
)
def test_builder_options_that_cannot_be(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as refused:
        BuilderOptions(**fields)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"precision": "bfloat16"}, "wants one of float16, float32"),
        ({"vae_precision": "float16"}, "wants one of float32, bfloat16"),
        ({"attention": {"unet_step": "flash"}}, "wants one of tensorrt, plugin"),
        ({"attention": {"vae_decoder": "plugin"}}, "it serves unet_step"),
        ({"attention": {"unet_step": "plugin"}, "precision": "float32"}, "--precision float16"),
        ({"attention": {"unet_step": "plugin"}, "wide_attention": True}, "--float32-attention"),
    ],
)
def test_options_that_cannot_be(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as refused:
        Options(**fields)
    assert words in str(refused.value)


def test_edits_of_each_graph() -> None:
    options = Options(wide_attention=True)
    assert options.edits("unet_step") == Edits(arithmetic="float16", wide_attention=True)
    assert options.edits("vae_decoder") == Edits(arithmetic="bfloat16")
    assert options.edits("vae_decoder").source == "float32"
    assert Options(precision="float32", wide_attention=True).edits("unet_step") == Edits(
        arithmetic="float32"
    )
    plugin = Options(attention={"unet_step": "plugin"})
    assert [g for g in GRAPHS if plugin.edits(g).attention == "plugin"] == ["unet_step"]


def test_attention_sums_in_float32_where_tensorrt_can() -> None:
    plugin = Options(attention={"unet_step": "plugin"})
    for version, can in (("11.2.1.2", False), ("11.3.0.99", True), ("12.0.0.1", True)):
        assert Options().settled(version) == Options(wide_attention=can)
        assert not plugin.settled(version).wide_attention
        for asked in (False, True):
            assert Options(wide_attention=asked).settled(version).wide_attention is asked


def test_builder_options_survive_json() -> None:
    options = BuilderOptions(
        workspace_bytes=1 << 33,
        profile_memory=0.25,
        auxiliary_streams=0,
        compatibility="ampere+",
        stripped=True,
        build_route="-conv_use_long_w=off -kgen:codegen:cuda_tile=2",
    )
    assert decode(BuilderOptions, encode(options), "") == options
    assert decode(BuilderOptions, encode(BuilderOptions()), "") == BuilderOptions()
