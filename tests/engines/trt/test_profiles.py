"""Profiles: every graph's, from the manifest of the model that ships, and ranges that are wrong."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_rt.engines.device.protocol import AT_ONCE
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import Manifest, read_manifest
from diffusion_rt.engines.spec import GRAPHS
from diffusion_rt.engines.trt.buckets import SDXL, Bucket
from diffusion_rt.engines.trt.profiles import (
    Coverage,
    Profile,
    Range,
    fixed,
    parse_batch,
    parse_chunks,
    profiles_for,
)
from diffusion_rt.engines.typed_json import decode, encode
from diffusion_rt.runtime.pipeline import SHIPPED

COVERAGE = Coverage(
    buckets=(Bucket(128, 128), Bucket(192, 64)),
    batch=Range(min=1, opt=2, max=4),
    chunks=Range(min=1, opt=1, max=3),
)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_manifest(SHIPPED)


def test_a_profile_for_every_bucket_of_the_unet(manifest: Manifest) -> None:
    square, wide = profiles_for(manifest, "unet_step", COVERAGE)
    assert (square.name, wide.name) == ("128x128", "192x64")
    assert wide.sizes == {
        "batch": Range(min=1, opt=4, max=8),  # rows: one without guidance, two with it
        "tokens": Range(min=32, opt=32, max=96),
        "height": fixed(8),
        "width": fixed(24),
    }


def test_every_shape_of_every_graph_is_in_order(manifest: Manifest) -> None:
    for graph in GRAPHS:
        variant = manifest.graphs[graph]["float16"]
        profiles = profiles_for(manifest, graph, COVERAGE)
        assert len(profiles) == (2 if graph in ("unet_step", "vae_decoder", "vae_encoder") else 1)
        for profile in profiles:
            for spec in variant.inputs:
                low, best, high = profile.shapes(spec)
                assert len(low) == len(spec.shape)
                assert all(1 <= a <= b <= c for a, b, c in zip(low, best, high, strict=True))


def test_what_runs_without_a_bucket(manifest: Manifest) -> None:
    (text,) = profiles_for(manifest, "text_encoder_2", COVERAGE)
    assert text.sizes == {"batch": Range(min=1, opt=2, max=8), "tokens": fixed(32)}
    (timestep,) = profiles_for(manifest, "unet_timestep", COVERAGE)
    assert timestep.sizes == {"n": Range(min=1, opt=60, max=AT_ONCE * 8)}
    (prompt,) = profiles_for(manifest, "unet_prompt", COVERAGE)
    assert prompt.sizes["batch"] == Range(min=1, opt=4, max=8)


def test_the_vae_in_pixels_and_latents(manifest: Manifest) -> None:
    decoder = profiles_for(manifest, "vae_decoder", COVERAGE)[1]
    encoder = profiles_for(manifest, "vae_encoder", COVERAGE)[1]
    assert (decoder.sizes["height"], decoder.sizes["width"]) == (fixed(8), fixed(24))
    assert (encoder.sizes["height"], encoder.sizes["width"]) == (fixed(64), fixed(192))
    assert decoder.sizes["batch"] == encoder.sizes["batch"] == fixed(1)


def test_a_graph_with_a_dimension_nobody_knows(manifest: Manifest) -> None:
    variant = manifest.graphs["unet_step"]["float16"]
    latent = replace(variant.inputs[0], shape=("batch", 4, "rows", "columns"))
    strange = replace(variant, inputs=(latent, *variant.inputs[1:]))
    graphs = dict(manifest.graphs) | {"unet_step": {"float16": strange}}
    with pytest.raises(BadInput, match="dimension columns, rows, known are"):
        profiles_for(replace(manifest, graphs=graphs), "unet_step", COVERAGE)


def test_a_factor_that_does_not_divide_a_bucket(manifest: Manifest) -> None:
    coarse = replace(manifest, vae=replace(manifest.vae, factor=16))
    with pytest.raises(BadInput, match=r"192x72: .* multiples of 16"):
        profiles_for(coarse, "unet_step", replace(COVERAGE, buckets=(Bucket(192, 72),)))


@given(st.integers(1, 64), st.integers(0, 63), st.integers(0, 63))
def test_ranges_read_back(low: int, more: int, still: int) -> None:
    found = Range(min=low, opt=min(64, low + more), max=min(64, low + more + still))
    assert parse_batch(str(found)) == found


def test_one_number_is_all_three() -> None:
    assert parse_batch("4") == fixed(4)
    assert parse_chunks("1:1:3") == Range(min=1, opt=1, max=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4:1:2", "out of order, wants MIN:OPT:MAX with MIN <= OPT <= MAX; try 1:2:4"),
        ("1:4:2", "try 1:2:4"),
        ("0:1:2", "wants sizes from 1 to 64"),
        ("1:1:65", "wants sizes from 1 to 64"),
        ("1:1", "wants MIN:OPT:MAX such as 1:1:4"),
        ("", "wants MIN:OPT:MAX"),
        ("1:1:1:1", "wants MIN:OPT:MAX"),
        ("-1:1:1", "wants MIN:OPT:MAX"),
        ("1: 1:1", "wants MIN:OPT:MAX"),
        ("1e3", "wants MIN:OPT:MAX"),
        ("²", "wants MIN:OPT:MAX"),
        ("١:1:1", "wants MIN:OPT:MAX"),
        ("9" * 5000, "wants MIN:OPT:MAX"),
    ],
)
def test_ranges_that_are_wrong(text: str, words: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_batch(text)
    assert words in str(refused.value)
    assert str(refused.value).startswith("--batch: ")
    assert len(str(refused.value)) < 300


def test_coverage_that_cannot_be() -> None:
    with pytest.raises(BadInput, match="no bucket"):
        replace(COVERAGE, buckets=())
    with pytest.raises(BadInput, match="batch 1:1:65"):
        replace(COVERAGE, batch=Range(min=1, opt=1, max=65))
    with pytest.raises(BadInput, match="chunks 1:1:17"):
        replace(COVERAGE, chunks=Range(min=1, opt=1, max=17))


def test_a_profile_holds_what_lies_in_it() -> None:
    profile = Profile(name="x", sizes={"batch": Range(min=1, opt=2, max=4), "height": fixed(16)})
    assert profile.holds({"batch": 4, "height": 16, "other": 9})
    assert not profile.holds({"batch": 5, "height": 16})
    assert not profile.holds({"batch": 1, "height": 8})


def test_profiles_survive_json(manifest: Manifest) -> None:
    profiles = profiles_for(manifest, "unet_step", replace(COVERAGE, buckets=SDXL))
    kind = tuple[Profile, ...]
    assert decode(kind, encode(profiles), "") == profiles
