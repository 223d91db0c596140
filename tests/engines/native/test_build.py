"""`diffusion-rt build --engine native`: which kernels are compiled, and what is measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffusion_rt.engines.device.backend import DeviceBackend
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native import build as building
from diffusion_rt.engines.native.build import Built, build, measured
from diffusion_rt.engines.native.graphs import NativeGraphs
from diffusion_rt.engines.native.needed import Target, needed, runs
from diffusion_rt.engines.native.tactics import Tactics, key_of
from diffusion_rt.engines.native.ways import Chip
from diffusion_rt.kernels import cache
from diffusion_rt.kernels.driver import NoDriver, limits_of
from diffusion_rt.kernels.variant import Variant
from support.device_graphs import simulated_gpu

SHIPPED = Path(__file__).resolve().parents[3] / "runtime" / "models" / "shapes-xl"


class Compiler:
    """Makes an image of nothing but its name, and counts."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def cubin(self, variant: Variant, arch: int) -> bytes:
        self.made.append(f"{variant.name} {arch}")
        return self.made[-1].encode()

    def ptx(self, variant: Variant) -> bytes:
        return self.cubin(variant, 0)


@pytest.fixture
def model() -> ModelFolder:
    return open_model(SHIPPED)


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache.ImageCache.__init__, "__defaults__", (lambda: made,))
    return made


def test_kernels_for_chips_that_are_not_here(model: ModelFolder, compiler: Compiler) -> None:
    heard: list[tuple[str, int, int]] = []
    built = build(
        model, buckets=[(64, 64)], archs=(80, 90), progress=lambda *told: heard.append(told)
    )
    assert [(b.kept, b.nbytes > 0, b.path.is_dir()) for b in built] == [(False, True, True)] * 2
    assert any(name.startswith("gemm_sm90") for name in compiler.made)
    assert not any("sm90" in name for name in compiler.made if name.endswith(" 80"))
    assert heard[0][0] == "compile for sm_80"
    assert heard[-1][1] == heard[-1][2] > 10
    count = len(compiler.made)
    again = build(model, buckets=[(64, 64)], archs=(80, 90))
    assert [b.kept for b in again] == [True, True]
    assert len(compiler.made) == count


def test_a_vae_that_overflows_needs_bfloat16_and_float32(model: ModelFolder) -> None:
    vae = replace(model.manifest.vae, force_upcast=True)
    folder = replace(model, manifest=replace(model.manifest, vae=vae))
    names = {
        v.name for v in needed(Target(folder, [(64, 64)], 1, 32, "float16"), Chip(limits_of(80)))
    }
    for dtype in ("bfloat16", "float32", "float16"):
        assert f"group_norm_silu.{dtype}" in names
    plain = {
        v.name for v in needed(Target(model, [(64, 64)], 1, 32, "float16"), Chip(limits_of(80)))
    }
    assert "group_norm_silu.bfloat16" not in plain
    assert {"prepare.float16", "guided_step.float16", "select_rows"} <= plain


def test_every_graph_is_built_for(model: ModelFolder) -> None:
    assert {graph for graph, _ in runs(Target(model, [(64, 64)], 1, 32, "float16"))} == (
        set(model.manifest.graphs) - {"vae_encoder"}  # which nothing runs yet
    )


def test_a_driver_without_kernels_of_its_chip_needs_those_of_any(model: ModelFolder) -> None:
    target = Target(model, [(64, 64)], 1, 32, "float16")
    whole, plain = (set(needed(target, Chip(limits_of(90), plain=p))) for p in (False, True))
    assert plain == {variant for variant in whole if not variant.suffix} < whole


def test_no_gpu_and_no_chip_named(
    model: ModelFolder, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise NoDriver("no NVIDIA driver here")

    monkeypatch.setattr(building, "open_device", none)
    with pytest.raises(BadInput, match=r"no NVIDIA driver here.*--archs 90"):
        build(model)


def test_a_chip_that_no_kernel_is_written_for(model: ModelFolder, compiler: Compiler) -> None:
    with pytest.raises(BadInput, match="--archs: got 75, wants some of 80"):
        build(model, archs=(75,))


def test_tactics_are_measured_where_there_is_a_device(
    model: ModelFolder, compiler: Compiler, tmp_path: Path
) -> None:
    """On the simulator, whose times mean nothing: what is measured is kept, and still draws."""
    gpu = simulated_gpu(arch=80)
    target = Target(model, [(32, 32)], 1, 32, "float32")
    tactics = Tactics(tmp_path, key_of(gpu.device))
    heard: set[str] = set()

    def built(force: bool = False) -> Built:
        return measured(
            target,
            gpu,
            tactics,
            graphs=("text_encoder",),
            force=force,
            progress=lambda stage, done, total: heard.add(stage),
        )

    first = built()
    assert not first.kept
    assert heard == {"measure text_encoder"}
    again = Tactics(tmp_path, key_of(gpu.device))
    assert len(again) == len(tactics) >= 2
    assert built().kept
    assert not built(force=True).kept
    backend = DeviceBackend(NativeGraphs(model, gpu, precision="float32", choose=again.choose), gpu)
    ids = np.arange(64).reshape(2, 32)
    states = {
        name: np.full(spec.resolve({"batch": 2, "tokens": 32}), np.nan, spec.dtype)
        for name, spec in backend.load("text_encoder").outputs.items()
    }
    engine = backend.load("text_encoder")
    engine.bind({"input_ids": ids, **states})
    engine.enqueue()
    assert np.isfinite(states["hidden_states"]).all()
