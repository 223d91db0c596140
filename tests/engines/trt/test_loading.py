"""Plans brought to the device: stripped, for later versions, for other GPUs, without memory."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_rt.engines.cache_folder import cache_path
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.errors import BadInput, Fault, OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.trt.backend import open_trt
from diffusion_rt.engines.trt.build import build
from diffusion_rt.engines.trt.options import Compatibility
from diffusion_rt.engines.trt.plan_file import open_plan, read_header, write_plan
from diffusion_rt.engines.trt.prepare import prepare
from diffusion_rt.kernels import driver
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.runtime.pipeline import Pipeline
from support import simulated_tensorrt
from support.device_graphs import simulated_gpu
from support.simulated_tensorrt import ICudaEngine, IExecutionContext, Refitter, Runtime, rules
from support.simulated_tensorrt import build as simulated_build
from support.simulated_tensorrt import runtime as simulated_runtime
from support.simulated_tensorrt.enums import DataType, Severity
from support.simulated_tensorrt.layers import Numbers
from support.tensorrt_bench import (
    COVERAGE,
    PLAIN,
    Kind,
    copied,
    drawn,
    one_evaluation,
    plan_of,
    refusal,
)

STRIPPED = replace(PLAIN, builder=replace(PLAIN.builder, stripped=True))


@pytest.fixture(scope="module")
def stripped(model: ModelFolder, gpu: Gpu, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The same model with plans that hold no weights."""
    found = copied(tmp_path_factory.mktemp("stripped") / "m", model)
    build(found, COVERAGE, STRIPPED, device=gpu.device, made_by="tests")
    return found


def test_a_stripped_plan_takes_its_weights_from_the_checkpoint(
    model: ModelFolder,
    stripped: ModelFolder,
    gpu: Gpu,
    tmp_path: Path,
    pipelines: tuple[Pipeline, Pipeline],
) -> None:
    assert plan_of(stripped).stat().st_size < plan_of(model).stat().st_size / 3
    casts = {path: path.stat() for path in cache_path("trt").glob("*.weights")}
    assert casts, "the checkpoint is float16, the engines are float32"
    wanted, _ = drawn(pipelines[1])
    with Pipeline(stripped, open_trt(stripped, gpu)) as pipeline:
        found, _ = drawn(pipeline)
    np.testing.assert_array_equal(found, wanted)
    for path, before in casts.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(list(cache_path("trt").glob("*.weights"))) == len(casts)
    # Another way of preparing the graph would hand over other weights.
    other = copied(tmp_path / "m", stripped)
    folder = plan_of(other).parent
    header = read_header(folder, "unet_step")
    assert header is not None
    with open_plan(folder, "unet_step") as plan:
        data = bytes(plan.data)
    write_plan(folder, replace(header, key=replace(header.key, network="0" * 64)), data)
    assert "prepares this graph in another way; build it again" in refusal(other, gpu)


def test_casts_of_a_checkpoint_that_was_replaced_go(
    model: ModelFolder, gpu: Gpu, tmp_path: Path
) -> None:
    from diffusion_rt.engines.trt.loading import checkpoint_weights  # wants TensorRT

    before = copied(tmp_path / "m", model)
    elsewhere = copied(tmp_path / "elsewhere", model)

    def kept(folder: ModelFolder, graph: str) -> set[str]:
        """The casts that are in the cache once those of a graph were asked for."""
        checkpoint_weights(folder, prepare(folder, graph, PLAIN.edits(graph)))
        return {path.name for path in cache_path("trt").glob("*.weights")}

    others = {path.name for path in cache_path("trt").glob("*.weights")}
    others |= kept(elsewhere, "unet_timestep")
    mine = kept(before, "unet_timestep") - others
    mine = kept(before, "unet_prompt") - others
    assert len(mine) == 2, "of two graphs both stay"
    after = replace(before, sha256="1" * 64)
    assert len(kept(after, "unet_timestep") - others - mine) == 1
    now = kept(after, "unet_prompt")
    assert now >= others
    assert not now & mine
    assert len(now - others) == 2


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize(
    "listed",
    [
        lambda numbers: True,
        lambda numbers: numbers.weights.dtype is not DataType.INT64,
        lambda numbers: bool(numbers.tensor),
    ],
    ids=["everything", "all but sizes", "initializers"],
)
def test_whatever_tensorrt_strips_is_given_back(
    listed: Callable[[Numbers], bool],
    model: ModelFolder,
    gpu: Gpu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What its parser adds goes into the plan, where it wants that back."""
    monkeypatch.setattr(simulated_build, "LISTED", listed)
    other = copied(tmp_path / "m", model)
    graphs = ["text_encoder", "vae_encoder"]
    summary = build(
        other, COVERAGE, STRIPPED, device=gpu.device, made_by="tests", graphs=graphs, force=True
    )
    kinds = [{constant.dtype for constant in built.header.constants} for built in summary.built]
    scales = {"float32"} if listed(Numbers("", simulated_tensorrt.Weights())) else set()
    sizes = listed(Numbers("", simulated_tensorrt.Weights(DataType.INT64)))
    assert kinds == [scales, {"int64"} if sizes else set()]
    opened = open_trt(other, gpu)
    for graph in graphs:
        opened.load(graph).close()
    # Without them it would compute with zeros.
    if any(kinds):
        header = summary.built[0].header
        with open_plan(summary.folder, "text_encoder") as plan:
            data = bytes(plan.data)
        write_plan(summary.folder, replace(header, constants=()), data)
        count = len(header.constants)
        with pytest.raises(Fault, match=rf"text_encoder: the plan misses {count} weights that"):
            open_trt(other, gpu).load("text_encoder")


@pytest.mark.usefixtures("simulated")
def test_a_stripped_plan_that_could_not_be_completed_is_not_written(
    model: ModelFolder, gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        simulated_tensorrt.INetworkDefinition, "set_weights_name", lambda *arguments: False
    )
    other = copied(tmp_path / "m", model)
    plan_of(other, "text_encoder").unlink()
    with pytest.raises(Fault, match=r"misses \d+ weights that .* tmp_weight_\d+ .* --stripped"):
        build(
            other,
            COVERAGE,
            STRIPPED,
            device=gpu.device,
            made_by="tests",
            graphs=["text_encoder"],
        )
    assert not plan_of(other).with_name("text_encoder.plan").exists()


@pytest.mark.usefixtures("simulated")
def test_a_weight_that_is_refused(
    stripped: ModelFolder, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, name: str, weights: Any) -> bool:
        self.logger.log(Severity.ERROR, "of another type")
        return False

    monkeypatch.setattr(Refitter, "set_named_weights", refuse)
    with pytest.raises(Fault, match=r"TensorRT refuses the weight \S+: of another type"):
        open_trt(stripped, gpu).load("text_encoder")


def test_a_plan_for_later_versions_runs(
    model: ModelFolder,
    gpu: Gpu,
    kind: Kind,
    tmp_path: Path,
    pipelines: tuple[Pipeline, Pipeline],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later = copied(tmp_path / "m", model)
    options = replace(PLAIN, builder=replace(PLAIN.builder, version_compatible=True))
    build(later, COVERAGE, options, device=gpu.device, made_by="tests")
    wanted, _ = drawn(pipelines[1])
    if kind == "simulated":  # the real one cannot be had in two versions
        monkeypatch.setattr(simulated_tensorrt, "__version__", "11.9.0.1")
        monkeypatch.setattr(simulated_runtime, "VERSION", "11.9.0.1")
        with pytest.raises(BadInput, match=r"for TensorRT .*, installed is 11\.9"):
            open_trt(model, gpu)
    with Pipeline(later, open_trt(later, gpu)) as pipeline:
        found, _ = drawn(pipeline)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.usefixtures("simulated")
def test_plans_for_other_gpus_too(
    model: ModelFolder, tmp_path: Path, pipelines: tuple[Pipeline, Pipeline]
) -> None:
    wanted, _ = drawn(pipelines[1])
    cases: list[tuple[Compatibility, int]] = [("ampere+", 80), ("same", 90)]
    for compatibility, runs_on in cases:
        folder = tmp_path / compatibility
        shutil.copytree(model.path, folder, ignore=shutil.ignore_patterns("engines"))
        other = open_model(folder)
        options = replace(PLAIN, builder=replace(PLAIN.builder, compatibility=compatibility))
        with on_another(90) as gpu:
            build(other, COVERAGE, options, device=gpu.device, made_by="tests")
        for arch in (80, 90):
            with on_another(arch) as gpu:
                if arch < runs_on:
                    with pytest.raises(BadInput, match=r"no TensorRT plan for this GPU"):
                        open_trt(other, gpu)
                    continue
                with Pipeline(other, open_trt(other, gpu)) as pipeline:
                    found, _ = drawn(pipeline)
                np.testing.assert_array_equal(found, wanted)


@contextmanager
def on_another(arch: int) -> Iterator[Gpu]:
    """A simulated GPU of another kind than that of the module, with a name of its own."""
    before = rules._Attached.device
    gpu = simulated_gpu(arch=arch)
    assert isinstance(gpu.device, Simulator)
    rules.attach(gpu.device)
    try:
        yield gpu
    finally:
        rules.attach(before)
        gpu.close()


def out_of_memory(self: Any, *arguments: Any) -> None:
    """What a call of TensorRT answers, and says, where the device has no memory left."""
    logger = getattr(self, "_logger", None) or self._engine._logger
    logger.log(Severity.ERROR, "[defaultAllocator.cpp] Cuda Runtime (out of memory)")


ASKING = [
    (Runtime, "deserialize_cuda_engine"),
    (Refitter, "refit_cuda_engine"),
    (ICudaEngine, "create_execution_context"),
    (IExecutionContext, "execute_async_v3"),
]


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize(("holder", "call"), ASKING, ids=[call for _, call in ASKING])
def test_memory_that_runs_out_in_tensorrt(
    holder: type,
    call: str,
    stripped: ModelFolder,
    gpu: Gpu,
    pipelines: tuple[Pipeline, Pipeline],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told as such, and other stages give theirs back, after which it works."""
    with monkeypatch.context() as patch:
        patch.setattr(holder, call, out_of_memory)
        denoiser = open_trt(stripped, gpu).denoiser()
        with pytest.raises(OutOfMemory, match="out of memory") as caught:
            denoiser(**one_evaluation())
        denoiser.close()
        assert "\n" not in str(caught.value)
        if holder in (Runtime, Refitter):
            weights = prepare(stripped, "unet_step", STRIPPED.edits("unet_step")).weight_bytes
            with pytest.raises(OutOfMemory, match="unet_step: its plan: ") as caught:
                open_trt(stripped, gpu).load("unet_step")
            told = re.search(
                r"(\d\.\d{3}) GB of device memory is needed, \d\.\d{3} GB is free .*; end what .*, "
                "take --engine native .*, or --engine ort$",
                str(caught.value),
            )
            assert told is not None
            assert float(told[1]) >= round(weights / 1e9, 3) > 0.001
    wanted, _ = drawn(pipelines[1])
    plain, calls = getattr(holder, call), []

    def once(self: Any, *arguments: Any) -> Any:
        calls.append(self)
        # The text encoders are there, and the first part of the UNet comes.
        return out_of_memory(self) if len(calls) == 3 else plain(self, *arguments)

    with Pipeline(stripped, open_trt(stripped, gpu)) as pipeline:
        monkeypatch.setattr(holder, call, once)
        found, _ = drawn(pipeline)
    assert len(calls) > 3
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.usefixtures("simulated")
def test_what_does_not_start(
    model: ModelFolder, stripped: ModelFolder, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bindings say it by a TypeError, which is no mistake of ours."""

    def nothing(self: Any, *arguments: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    for kind, folder, words in (
        (Runtime, model, "TensorRT's runtime does not start: it gave no reason"),
        (Refitter, stripped, "TensorRT's refitter does not start"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(kind, "__init__", nothing)
            with pytest.raises(Fault, match=words):
                open_trt(folder, gpu).load("text_encoder")


@pytest.mark.usefixtures("simulated")
def test_a_device_that_is_lost_is_told_of(
    model: ModelFolder, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*arguments: Any) -> Any:
        raise driver.DeviceLost("an unspecified launch failure", 719)

    for call in ("stream", "memory"):
        with monkeypatch.context() as patch:
            patch.setattr(gpu.device, call, lost)
            with pytest.raises(Fault, match="an unspecified launch failure"):
                open_trt(model, gpu).load("text_encoder")
