"""`diffusion-rt build --engine native`: which kernels are compiled, and what is measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffusion_rt.engines.device.backend import DeviceBackend
from diffusion_rt.engines.errors import BadInput, OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native import build as building
from diffusion_rt.engines.native.build import Built, build, measured
from diffusion_rt.engines.native.graphs import NativeGraphs
from diffusion_rt.engines.native.needed import Target, needed, runs, target_of
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
        v.name for v in needed(Target(folder, [(64, 64)], [1], 32, "float16"), Chip(limits_of(80)))
    }
    for dtype in ("bfloat16", "float32", "float16"):
        assert f"group_norm_silu.{dtype}" in names
    plain = {
        v.name for v in needed(Target(model, [(64, 64)], [1], 32, "float16"), Chip(limits_of(80)))
    }
    assert "group_norm_silu.bfloat16" not in plain
    assert {"prepare.float16", "guided_step.float16", "select_rows"} <= plain


def test_every_graph_is_built_for(model: ModelFolder) -> None:
    assert {graph for graph, _ in runs(Target(model, [(64, 64)], [1], 32, "float16"))} == (
        set(model.manifest.graphs) - {"vae_encoder"}  # which nothing runs yet
    )


def test_every_batch_is_built_for_once_the_usual_first(model: ModelFolder) -> None:
    """With guidance and without; two images without are as one with."""
    target = Target(model, [(64, 64), (64, 32)], [2, 1, 4], 32, "float16", (2, 1))
    found = list(runs(target))
    assert len(found) == len({(graph, *sizes.items()) for graph, sizes in found})
    for width in ((64, 64), (64, 32)):
        latents = {"height": width[1] // 8, "width": width[0] // 8}
        batches = [
            sizes["batch"]
            for graph, sizes in found
            if graph == "unet_step" and latents.items() <= sizes.items()
        ]
        assert batches == [4, 2, 1, 8]
    prompts = [sizes["batch"] for graph, sizes in found if graph == "unet_prompt"]
    assert prompts == [4, 2, 1, 8]


def test_a_model_that_wants_no_guidance_has_one_row_an_image(model: ModelFolder) -> None:
    assert target_of(model, "float16").rows == (2,)
    defaults = replace(model.manifest.defaults, guidance_scale=0.0)
    turbo = replace(model, manifest=replace(model.manifest, defaults=defaults))
    assert target_of(turbo, "float16").rows == (1,)
    assert target_of(turbo, "float16", rows=building.ROWS).rows == (2, 1)


def test_sizes_that_memory_does_not_hold_are_said_and_left_out(
    model: ModelFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[int] = []

    def measure(graphs: object, graph: str, sizes: dict[str, int], *rest: object) -> int:
        if sizes["batch"] > fits:
            raise OutOfMemory(f"{graph}: {sizes['batch']} rows")
        seen.append(sizes["batch"])
        return 1

    monkeypatch.setattr(building, "_measure", measure)
    gpu = simulated_gpu(arch=80)
    tactics = Tactics(tmp_path, key_of(gpu.device))
    target = Target(model, [(32, 32)], [1, 8, 64], 32, "float32", (2, 1))

    def built() -> Built:
        graphs = ("unet_step",)
        return measured(target, gpu, tactics, graphs=graphs, force=False, progress=lambda *_: None)

    fits = 16
    built()
    assert seen == [2, 1, 16, 8]
    assert [record.message for record in caplog.records] == [
        f"not measured: unet_step: {rows} rows" for rows in (128, 64)
    ]
    fits = 1
    with pytest.raises(OutOfMemory, match="2 rows"):
        built()


def test_a_driver_without_kernels_of_its_chip_needs_those_of_any(model: ModelFolder) -> None:
    target = Target(model, [(64, 64)], [1], 32, "float16")
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
    target = Target(model, [(32, 32)], [1], 32, "float32")
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
