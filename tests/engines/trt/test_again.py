"""The command that an error names builds what was there, and what was wanted."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_rt.command import Parser
from diffusion_rt.engines.cli import add_arguments, options_of
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.trt.again import build_command
from diffusion_rt.engines.trt.buckets import Bucket, parse_buckets
from diffusion_rt.engines.trt.options import BuilderOptions, Options
from diffusion_rt.engines.trt.plan_file import PlanHeader
from diffusion_rt.engines.trt.profiles import (
    Coverage,
    Range,
    parse_batch,
    parse_chunks,
    profiles_for,
)
from diffusion_rt.runtime.pipeline import SHIPPED
from support.plans import MACHINE, header_of, key_of

MODEL = open_model(SHIPPED)


@st.composite
def ranges(draw: st.DrawFn, limit: int) -> Range:
    low, middle, high = sorted(draw(st.tuples(*[st.integers(1, limit)] * 3)))
    return Range(min=low, opt=middle, max=high)


SIDES = st.integers(1, 64).map(lambda n: 8 * n)
COVERAGES = st.builds(
    Coverage,
    buckets=st.lists(st.builds(Bucket, SIDES, SIDES), min_size=1, max_size=4, unique=True).map(
        tuple
    ),
    batch=ranges(8),
    chunks=ranges(4),
)
BUILDERS = st.builds(
    BuilderOptions,
    optimization_level=st.integers(0, 5),
    workspace_bytes=st.none() | st.integers(1, 999999).map(lambda n: n << 20),
    profile_memory=st.sampled_from([0.0, 0.25, 1.0]),
    tiling=st.sampled_from(["none", "fast", "moderate", "full"]),
    auxiliary_streams=st.none() | st.integers(0, 16),
    compatibility=st.sampled_from(["none", "same", "ampere+"]),
    version_compatible=st.booleans(),
    stripped=st.booleans(),
    tf32=st.booleans(),
    build_route=st.sampled_from(["", "-conv_use_long_w=off", "-a:b=1 -c=2,3"]),
)
OPTIONS = (
    st.builds(
        Options,
        precision=st.sampled_from(["float16", "float32"]),
        vae_precision=st.sampled_from(["bfloat16", "float32"]),
        builder=BUILDERS,
    )
    | st.builds(Options, wide_attention=st.none() | st.booleans(), builder=BUILDERS)
    | st.builds(Options, attention=st.just({"unet_step": "plugin"}), builder=BUILDERS)
)


def plans_of(model: ModelFolder, coverage: Coverage, options: Options) -> dict[str, PlanHeader]:
    """Headers as a build with these settings leaves them."""
    return {
        graph: header_of(
            b"",
            key_of(
                graph=graph,
                edits=options.settled(MACHINE.tensorrt).edits(graph),
                profiles=profiles_for(model.manifest, graph, coverage),
                builder=options.builder,
            ),
        )
        for graph in ("unet_step", "vae_decoder")
    }


def read(command: str) -> tuple[Path, Coverage, Options]:
    """What `diffusion-rt build` understands."""
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("diffusion-rt", "build")
    parser = Parser(prog="build")
    add_arguments(parser)
    found = parser.read(words)
    assert found.engine == "trt"
    coverage = Coverage(
        buckets=parse_buckets(found.buckets),
        batch=parse_batch(found.batch),
        chunks=parse_chunks(found.chunks or "1:1:3"),
    )
    return found.DIR, coverage, options_of(found)


def same_options(found: Options, wanted: Options) -> bool:
    usual: Any = {"unet_step": "tensorrt"}
    found, wanted = (options.settled(MACHINE.tensorrt) for options in (found, wanted))
    return all(
        getattr(found, name) == getattr(wanted, name)
        for name in ("precision", "vae_precision", "wide_attention", "builder")
    ) and {**usual, **found.attention} == {**usual, **wanted.attention}


@given(COVERAGES, OPTIONS)
def test_engines_are_built_again_as_they_were(coverage: Coverage, options: Options) -> None:
    folder, found, spelt = read(build_command(MODEL, plans_of(MODEL, coverage, options)))
    assert folder == MODEL.path
    assert set(found.buckets) == set(coverage.buckets)
    assert (found.batch, found.chunks) == (coverage.batch, coverage.chunks)
    assert same_options(spelt, options)


@given(COVERAGES, OPTIONS)
def test_only_what_is_named_changes(coverage: Coverage, options: Options) -> None:
    command = build_command(
        MODEL, plans_of(MODEL, coverage, options), batch="1:2:9", vae_precision="float32"
    )
    _, found, spelt = read(command)
    assert found.batch == Range(min=1, opt=2, max=9)
    assert spelt.vae_precision == "float32"
    assert found.chunks == coverage.chunks
    assert spelt.builder == options.builder


@pytest.mark.parametrize("name", ["plain", "with blanks", "quote'd", "-dash"])
def test_any_folder_is_spelt_for_the_shell(name: str, tmp_path: Path) -> None:
    model = ModelFolder(tmp_path / name, MODEL.manifest, MODEL.sha256)
    assert shlex.split(build_command(model))[2] == str(tmp_path / name)
    assert build_command(model).endswith("--engine trt")
